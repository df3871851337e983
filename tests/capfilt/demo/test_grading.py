"""Grades of captions and of the filter, on a few pairs whose grades are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from blipcore.io.samples import TarSample
from capfilt.demo.grading import (
    GradedPair,
    grade_captions,
    grade_filter,
    kept_share_by_kind,
    read_pairs,
    sample_pictures,
)
from capfilt.demo.language import write_caption
from capfilt.demo.scenes import Scene, sample_scene
from capfilt.demo.tables import filter_table
from capfilt.shards.format import write_shard
from capfilt.shards.tables import write_table

WEB_PAIR = GradedPair("a", "web", "a dog", 0.9, True, "kept", "good", matches=True)
SCENES: list[Scene] = [sample_scene(0, "validation", number) for number in range(2)]
EXACT: list[str] = [write_caption(scene, Random(0)) for scene in SCENES]


def test_undefined_numbers_of_a_filter_are_null() -> None:
    pair = GradedPair("a", "captioner", "a dog", 0.2, False, "itm<0.5", "synthetic", matches=False)
    grades = grade_filter([pair])["synthetic"]
    assert (grades["kept"], grades["precision"], grades["recall"], grades["itm_auc"]) == (0, None, None, None)
    assert "–" in "".join(filter_table({"filter": {"synthetic": grades}}).columns[4].cells)


def test_a_filter_is_graded_by_the_pairs_that_match() -> None:
    pairs = [
        WEB_PAIR,
        replace(WEB_PAIR, itm=0.6, matches=False),
        replace(WEB_PAIR, itm=0.4, keep=False),
        replace(WEB_PAIR, itm=0.1, keep=False, matches=False),
    ]
    grades = grade_filter(pairs)
    assert grades.keys() == {"web"}  # no captioner
    assert grades["web"] == {
        "texts": 4, "kept": 0.5, "matching_before": 0.5, "precision": 0.5, "recall": 0.5, "itm_auc": 0.75
    }  # fmt: skip


def test_the_kept_share_is_of_the_web_texts_of_each_kind() -> None:
    spam = replace(WEB_PAIR, kind="spam", matches=False)
    pairs = [WEB_PAIR, spam, replace(spam, keep=False), replace(spam, keep=False, source="captioner")]
    assert kept_share_by_kind(pairs) == {"good": {"texts": 1, "kept": 1.0}, "spam": {"texts": 2, "kept": 0.5}}


def test_captions_are_graded_against_the_scenes(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    truth = {f"{number}.jpg": scene.to_dict() for number, scene in enumerate(SCENES)}
    (tmp_path / "truth" / "validation.json").write_text(json.dumps(truth))

    def grade(*captions: str) -> dict[str, float | None]:
        # in another order than the pictures
        rows = [{"image_id": number, "caption": captions[number]} for number in (1, 0)]
        (tmp_path / "captions.json").write_text(json.dumps(rows))
        return grade_captions(tmp_path / "captions.json", tmp_path, "validation")

    assert grade(*EXACT) == {"exact_match": 1.0, "true": 1.0, "object_f1": 1.0}
    assert grade(EXACT[0], "")["exact_match"] == grade(EXACT[0], "")["true"] == 0.5
    assert grade(EXACT[0], "")["object_f1"] == pytest.approx(
        2 * len(SCENES[0].things) / (2 * len(SCENES[0].things) + len(SCENES[1].things))
    )
    assert grade(*EXACT[::-1])["exact_match"] == 0


def test_pairs_are_joined_with_the_truth_by_the_url(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    web = [
        {"url": f"pictures/{number}.jpg", "kind": kind, "matches": kind == "good", "scene": json.dumps(scene.to_dict())}
        for number, (kind, scene) in enumerate(zip(("good", "spam"), SCENES, strict=True))
    ]
    write_table(tmp_path / "truth" / "web.parquet", pa.Table.from_pylist(web))
    row = {"key": "k", "url": "http://localhost:8000/pictures/1.jpg", "itm": 0.7, "keep": True, "reason": "kept"}
    rows = [
        row | {"source": "web", "text": "buy now"},
        row | {"source": "c", "text": EXACT[1]},
        row | {"source": "c", "text": EXACT[0]},
        row | {"source": "web", "text": "", "itm": None},
    ]
    write_table(tmp_path / "filtered" / "00000.parquet", pa.Table.from_pylist(rows))
    pairs = read_pairs(tmp_path / "filtered", tmp_path)
    assert [(pair.text, pair.kind, pair.matches) for pair in pairs] == [
        ("buy now", "spam", False), (EXACT[1], "synthetic", True), (EXACT[0], "synthetic", False)
    ]  # fmt: skip


def test_sample_pictures_show_every_combination_of_verdicts(tmp_path: Path) -> None:
    keys = ["a", "b", "c", "d"]
    write_shard(tmp_path / "data" / "00000.tar", [TarSample(key, key.encode(), "text") for key in keys])
    pairs = [replace(WEB_PAIR, key=key, keep=key in "abc") for key in keys]
    samples = sample_pictures(pairs, tmp_path / "data", tmp_path / "out", n=2)
    assert [sample["picture"] for sample in samples] == ["a.jpg", "d.jpg"]
    assert (tmp_path / "out" / "d.jpg").read_bytes() == b"d"
    assert samples[1]["texts"] == [
        {"source": "web", "text": "a dog", "itm": 0.9, "keep": False, "reason": "kept", "kind": "good", "matches": True}
    ]
