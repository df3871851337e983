"""Gauges of a round's texts."""

from pathlib import Path

import pyarrow as pa
import pytest

from capfilt.bootstrap.gauges import gauge_texts, rare_words, split_words
from capfilt.shards.tables import write_table


def test_the_gauges_describe_the_kept_captions_of_the_round(tmp_path: Path) -> None:
    rows = [
        ("web", "sale", False), ("web", "a dog", True), ("round-1", "an old text", True),
        ("round-2", "a dog on blue", True), ("round-2", "a dog on blue", True), ("round-2", "a cat", True),
        ("round-2", "an owl", False),
    ]  # fmt: skip
    table = pa.Table.from_pylist([dict(zip(("source", "text", "keep"), row, strict=True)) for row in rows])
    write_table(tmp_path / "00000.parquet", table)
    gauges = gauge_texts(tmp_path, "round-2", {"cat", "owl"})
    assert gauges == {
        "kept": 5,
        "kept_share_web": 0.5,
        "kept_share_captions": 0.75,
        "distinct_captions": pytest.approx(2 / 3),
        "distinct_bigrams": 4,
        "rare_word_recall": 0.5,
        "words_per_caption": pytest.approx(10 / 3),
    }


def test_rare_words_are_the_last_twentieth_of_all_words() -> None:
    assert rare_words(["a dog"] * 19 + ["an owl"]) == {"an", "owl"}
    assert rare_words(["a dog"] * 3) == set()


def test_chinese_characters_are_words() -> None:
    assert split_words("三个 red-Dog2_x") == ["三", "个", "red", "dog2", "x"]
