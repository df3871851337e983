"""Repair: failing sentences are cut, the rest is kept with its own scores, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from filter_runs import rows, run

from capfilt.filter.repair import repair
from capfilt.filter.sentences import SENTENCES, lowest
from capfilt.shards.format import write_shard


def table(*texts: tuple[str, list[tuple[str, float]]]) -> pa.Table:
    """Return a table of scores with these texts, and their sentences with scores."""
    lists = []
    for text, sentences in texts:
        starts = [text.index(sentence) for sentence, _ in sentences]
        lists.append(
            [
                {"start": start, "end": start + len(sentence), "itm": itm, "truncated": False}
                for start, (sentence, itm) in zip(starts, sentences, strict=True)
            ]
        )
    values = [[sentence["itm"] for sentence in sentences] for sentences in lists]
    columns = {"text": pa.array([text for text, _ in texts]), "itm": pa.array([0.9] * len(texts), pa.float32())}
    columns["itm_min"] = pa.array([lowest(of_text) if of_text else None for of_text in values], pa.float32())
    means = [sum(of_text) / len(of_text) if of_text else None for of_text in values]
    columns["itm_mean"] = pa.array(means, pa.float32())
    return pa.table({**columns, SENTENCES.name: pa.array(lists, SENTENCES.type)})


@pytest.mark.parametrize(
    ("sentences", "kept", "cut"),
    [
        ([("A red dog.", 0.9), ("Two cats.", 0.1)], "A red dog.", ["Two cats."]),
        ([("A red dog.", 0.1), ("Two cats.", 0.9)], "Two cats.", ["A red dog."]),
        ([("A dog.", 0.9), ("No.", 0.2), ("A cat.", 0.5)], "A dog.  A cat.", ["No."]),
        ([("A dog.", 0.9), ("A cat.", float("nan"))], "A dog.", ["A cat."]),
        ([("A dog.", 0.9), ("A cat.", 0.8)], "A dog.  A cat.", None),
        ([("A dog.", 0.1), ("A cat.", 0.2)], "A dog.  A cat.", None),
        ([("A dog.", 0.1)], "A dog.", None),
    ],
)
def test_failing_sentences_are_cut_from_texts_with_others(
    sentences: list[tuple[str, float]], kept: str, cut: list[str] | None
) -> None:
    text = "  ".join(sentence for sentence, _ in sentences)
    [row] = repair(table((text, sentences)), 0.5).to_pylist()
    assert (row["text"], row["cut"], row["original"]) == (kept, cut, text if cut else None)
    assert row["itm"] == pytest.approx(0.9)
    if cut:
        assert row["itm_min"] >= 0.5 and row["itm_mean"] >= row["itm_min"]


def test_texts_without_white_space_are_joined_without() -> None:
    text = "一只狗。两只猫。一棵树。"
    sentences = [("一只狗。", 0.9), ("两只猫。", 0.1), ("一棵树。", 0.7)]
    assert repair(table((text, sentences)), 0.5)["text"].to_pylist() == ["一只狗。一棵树。"]


def test_texts_without_scores_stay_as_they_are() -> None:
    repaired = repair(table(("A dog.", [])), 0.5)
    assert repaired["text"].to_pylist() == ["A dog."] and repaired["cut"].to_pylist() == [None]


@pytest.fixture
def two_sentences(tmp_path: Path, drawn: Callable) -> Path:
    """Write a shard of twelve pictures, each with a text of two sentences."""
    pairs = [("a red dog", "two cats"), ("a round tree", "three blue dogs on the left"), ("one cat", "the right tree")]
    samples = [drawn(number, ". ".join(pairs[number % 3]) + ".") for number in range(12)]
    write_shard(tmp_path / "data" / "00000.tar", samples)
    return tmp_path / "data"


def test_a_filtered_set_has_the_repaired_text_the_original_and_what_was_cut(
    two_sentences: Path, tiny_filter: Path, no_pictures: Callable[[], None]
) -> None:
    summary = run(two_sentences, tiny_filter, repair=True)
    table = rows(summary)
    repaired = [row for row in table if row["original"]]
    assert repaired and len(repaired) < 12, "the random filter repairs some texts"
    for row in table:
        sentences = row["sentences"]
        original = row["original"] or row["text"]
        passing = [original[item["start"] : item["end"]] for item in sentences if item["itm"] >= 0.5]
        assert row["keep"] == bool(passing) and row["reason"] == ("kept" if passing else "itm_min<0.5")
        if row["keep"]:
            assert row["text"] == " ".join(passing)
        assert len(row["cut"] or []) == (2 - len(passing) if row["original"] else 0)
    assert summary["repaired"] == {"texts_repaired": len(repaired), "sentences_cut": len(repaired)}
    assert summary["texts"] == 12 == summary["kept"] + sum(summary["dropped"].values())
    no_pictures()
    stricter = run(two_sentences, tiny_filter, name="strict", repair=True, threshold=0.9)
    assert stricter["scores"] == summary["scores"]
    assert run(two_sentences, tiny_filter, repair=True)["shards"]["skipped"] == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"top_fraction": 0.5}, "repair judges sentences by a number as threshold"),
        ({"threshold": "auto", "labels": "labels.csv"}, "repair judges sentences by a number as threshold"),
        ({"min_scores": {"itm_min": 0.5}}, "set threshold instead of min_scores"),
        ({"score": "itc", "threshold": 0.3}, "repair decides by the ITM of sentences, not by itc"),
        ({"strata": "length"}, "leave out strata"),
    ],
)
def test_settings_for_whole_texts_raise(settings: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path, tmp_path, repair=True, **settings)
