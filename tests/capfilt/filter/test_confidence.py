"""Confidence: the length penalty, joined to the texts by key and index, and captions without log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from blipcore.io.writing import write_json
from capfilt.filter.computed import append_computed, declare_computed, recorded_settings
from capfilt.filter.confidence import Confidence, normalize_logprobs, require_logprobs
from capfilt.shards.format import CAPTIONS
from capfilt.shards.tables import write_table


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Write captions of two pictures, as `capfilt caption` does, and return their folder."""
    folder = tmp_path / "captions" / "c"
    rows = [("a", 0, "a red dog", -2.0), ("a", 1, "a dog", -1.0), ("b", 0, "two cats", None)]
    write_captions(folder, rows)
    write_json(folder / "manifest.json", {"stage": "caption", "config": {}})
    return folder


def write_captions(folder: Path, rows: list[tuple[str, int, str | None, float | None]]) -> None:
    columns = dict(zip(("key", "index", "text", "logprob"), zip(*rows, strict=True), strict=True))
    write_table(folder / "00000.parquet", pa.table({**columns, "error": [None] * len(rows)}, schema=CAPTIONS))


def scores(rows: list[tuple[str, str, int, str | None]]) -> pa.Table:
    names = ("key", "source", "index", "text")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red dog", 3),
        ("A red dog, on the left!", 6),
        ("", 0),
        (None, 0),
        ("两只红色的狗", 6),
        ("b2b", 1),
        ("🙂 🙂", 0),
    ],
)
def test_the_penalty_grows_with_the_words_of_the_text(text: str | None, words: int) -> None:
    got = normalize_logprobs(np.array([-3.0]), pa.array([text], pa.string()))
    assert got == pytest.approx([-3.0 / ((5 + words + 1) / 6) ** 0.6])


def test_numbers_are_joined_by_key_and_index_in_any_order(captions: Path) -> None:
    table = scores(
        [
            ("b", "web", 0, "a web text"),
            ("a", "c", 1, "a dog"),
            ("a", "c", 0, "a red dog"),
            ("b", "c", 0, "two cats"),
            ("gone", "c", 0, "no such picture"),
        ]
    )
    got = Confidence({"c": captions}).compute("00000", table)
    expected = normalize_logprobs(np.array([np.nan, -1.0, -2.0, np.nan, np.nan]), table["text"])
    np.testing.assert_array_equal(got, expected)


def test_infinite_log_probabilities_are_no_confidence(captions: Path) -> None:
    write_captions(captions, [("a", 0, "a red dog", -np.inf), ("a", 1, "a dog", np.nan)])
    got = Confidence({"c": captions}).compute("00000", scores([("a", "c", 0, "a red dog"), ("a", "c", 1, "a dog")]))
    assert np.isnan(got).all()


def test_only_sources_of_a_captioner_have_a_confidence(captions: Path, tmp_path: Path) -> None:
    write_captions(tmp_path / "captions" / "packed", [("a", 0, "a packed text", None)])
    write_json(tmp_path / "captions" / "packed" / "manifest.json", {"stage": "texts", "config": {}})
    folders: dict[str, Any] = {"web": None, "packed": tmp_path / "captions" / "packed"}
    assert declare_computed(["itm", "itc"], folders) == []
    computed = declare_computed(["itm", "itc"], folders | {"c": captions})
    assert recorded_settings(computed) == {"confidence": {"length_penalty": 0.6}}
    table = append_computed(scores([("a", "packed", 0, "a packed text"), ("a", "c", 1, "a dog")]), "00000", computed)
    assert table["confidence"].type == pa.float32() and table["confidence"].to_pylist()[0] is None
    assert table["confidence"].to_pylist()[1] == pytest.approx(-1.0 / (8 / 6) ** 0.6)


def test_a_resumed_set_keeps_its_columns_and_settings(captions: Path) -> None:
    assert declare_computed(["itm"], {"c": captions}, {}) == []
    (resumed,) = declare_computed(["itm"], {"c": captions}, {"confidence": {"length_penalty": 1.0}})
    assert resumed.settings == {"length_penalty": 1.0}


def test_a_stored_score_of_this_name_is_used_instead(captions: Path) -> None:
    assert declare_computed(["itm", "confidence"], {"c": captions}) == []


def test_captions_without_log_probabilities_are_named_if_they_are_needed(captions: Path) -> None:
    require_logprobs({"web": None, "c": captions}, "00000", "best_of")
    require_logprobs({"c": captions}, "00001", "best_of")  # a shard without a table yet
    write_captions(captions, [("a", 0, None, None)])
    require_logprobs({"c": captions}, "00000", "best_of")  # no caption, so nothing is known
    write_captions(captions, [("a", 0, "a dog", None), ("b", 0, None, None)])
    with pytest.raises(ValueError, match=r"best_of needs a confidence, but the captions 'c' have no log-prob"):
        require_logprobs({"c": captions}, "00000", "best_of")
