"""The gallery: which pictures each kind selects, and missing pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filtered_set import filter_set, write_set
from folders import rows_of
from report_page import read_page_data

from blipcore.io.writing import write_json
from capfilt.filter.filtered_set import FilteredSet
from capfilt.report.gallery import Pick, _first_per_picture, _text_entry, changed_verdicts
from capfilt.report.stage import ReportConfig, write_report
from capfilt.shards.format import write_shard


def test_each_kind_selects_the_pictures_of_its_heading(filtered: Path, content: dict[str, Any]) -> None:
    kinds, pictures = content["gallery"]["kinds"], content["gallery"]["pictures"]
    assert [len(kinds[kind]) for kind in ("threshold", "random", "disagree")] == [10, 10, 10]
    rows = {(row["key"], row["source"]): row for row in rows_of(filtered)}
    picked = {kind: [rows[pick["key"], pick["source"]] for pick in picks] for kind, picks in kinds.items()}
    assert all(row["itm"] == 0.5 for row in picked["threshold"])
    by_clip = sorted((row for row in rows.values() if row["keep"]), key=lambda row: row["clip"])
    assert picked["disagree"][0] == by_clip[0]
    assert all(row["keep"] for row in picked["disagree"])
    times = Counter(row["text"] for row in rows.values() if row["reason"] != "no_text")
    assert [pick["times"] for pick in kinds["repeated"]] == [times[row["text"]] for row in picked["repeated"]]
    assert kinds["repeated"][0]["times"] == max(times.values()) > kinds["repeated"][-1]["times"] > 1
    for name, picture in pictures.items():
        assert picture["image"].startswith("data:image/jpeg;base64,")
        of_picture = [row for row in rows.values() if row["key"] == name.split("/")[1]]
        assert [text["source"] for text in picture["texts"]] == [row["source"] for row in of_picture]
        assert [text["itm"] for text in picture["texts"]] == [row["itm"] for row in of_picture]


def test_sentences_have_their_places_scores_and_whether_they_were_cut() -> None:
    original = "A dog 😀. Two cats. " + "A tree. " * 300
    starts = [0, 9, *range(19, len(original), 8)]
    sentences = [{"start": start, "end": start + 7, "itm": 0.25} for start in starts]
    sentences[0] |= {"end": 8, "itm": 0.75}
    sentences[1] |= {"end": 18, "itm": float("nan")}
    row = {"source": "c", "index": 0, "reason": "kept", "decided_by_score": True, "text": "A dog 😀.", "itm_min": 0.75}
    row |= {"original": original, "cut": ["Two cats.", "A tree."], "sentences": sentences}
    entry = _text_entry(row, ["itm_min"])
    assert (entry["text"], entry["cut"]) == (original[:1600], len(original) - 1600)
    # an emoji is two units of a JavaScript string
    assert entry["sentences"][:3] == [
        {"start": 0, "end": 9, "itm": 0.75, "cut": False},
        {"start": 10, "end": 19, "itm": None, "cut": True},
        {"start": 20, "end": 27, "itm": 0.25, "cut": True},
    ]
    assert all(item["end"] <= 1601 for item in entry["sentences"]) and len(entry["sentences"]) > 190
    one = _text_entry(row | {"original": None, "sentences": sentences[:1], "cut": None}, ["itm_min"])
    assert one["text"] == "A dog 😀." and "sentences" not in one


def test_a_picture_has_the_place_of_its_first_pick() -> None:
    picks = [Pick("00000", key, source, 0) for key, source in (("a", "web"), ("b", "web"), ("a", "c"), ("c", "web"))]
    assert _first_per_picture(picks) == [picks[0], picks[1], picks[3]]


def test_changed_verdicts_are_texts_that_one_of_two_sets_keeps(filtered: Path) -> None:
    other = filter_set(filtered.parents[1], "stricter", threshold=0.9)
    keep = {(row["key"], row["source"]): row["keep"] for row in rows_of(filtered)}
    expected = {row["key"] for row in rows_of(other) if row["keep"] != keep[row["key"], row["source"]]}
    picks = changed_verdicts(FilteredSet.open(filtered), [FilteredSet.open(other)], number=1000)
    assert {pick.key for pick in picks} == expected and len(picks) == len(expected) > 3
    assert changed_verdicts(FilteredSet.open(filtered), [FilteredSet.open(filtered)], number=10) == []


def test_a_missing_or_broken_picture_has_its_reason(drawn: Callable, tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", drawn, pictures=12)
    filtered = filter_set(data)
    broken = drawn(1)
    broken.image = broken.image[:60]
    write_shard(data / "00000.tar", [drawn(0), broken])
    (data / "00001.tar").unlink()
    (data / "00001.parquet").write_bytes(b"PAR1 without a footer")  # a truncated table of another tool
    write_report(ReportConfig(str(filtered), out=str(tmp_path / "r.html")))
    pictures = read_page_data(tmp_path / "r.html")["gallery"]["pictures"]
    assert "image" in pictures["00000/000000"]
    assert pictures["00000/000001"]["missing"] in ("truncated", "corrupt")
    assert {picture["missing"] for name, picture in pictures.items() if name > "00000/000001"} == {"not in its tar"}


def test_pictures_of_a_set_with_a_higher_limit_of_pixels_are_shown(
    drawn: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfilt.report.gallery.MAX_PIXELS", 100)
    data = write_set(tmp_path / "data", drawn, pictures=2, shards=1)
    filtered = filter_set(data)
    for limit, shown in ((100, False), (1_000_000, True)):
        write_json(data / "manifest.json", {"stage": "pack", "config": {"max_pixels": limit}})
        write_report(ReportConfig(str(filtered), out=str(tmp_path / "r.html")))
        pictures = read_page_data(tmp_path / "r.html")["gallery"]["pictures"]
        assert pictures and all(("image" in picture) == shown for picture in pictures.values())
