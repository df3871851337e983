"""Grades of the filter, on a few texts whose grades are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blipcore.io.samples import TarSample
from capfilt.demo.filter_grades import (
    GradedText,
    grade_filter,
    kept_by_kind,
    read_texts,
    sample_pictures,
    write_oracle,
)
from capfilt.demo.language import write_caption
from capfilt.demo.scenes import Scene, sample_scene
from capfilt.demo.tables import filter_table, synthetic_table
from capfilt.shards.format import write_shard
from capfilt.shards.tables import write_table

WEB_TEXT = GradedText("a", "web", "a dog", {"itm": 0.9}, True, "kept", "good", True, 1, False)
CAPTION = replace(WEB_TEXT, source="captioner", kind="synthetic")
SCENES: list[Scene] = [sample_scene(0, "validation", number) for number in range(2)]
EXACT: list[str] = [write_caption(scene, Random(0)) for scene in SCENES]


def test_undefined_numbers_of_a_filter_are_null() -> None:
    text = replace(CAPTION, keep=False, matches=False)
    grades = grade_filter([text])["synthetic"]
    assert (grades["kept"]["value"], grades["right"], grades["recall"], grades["auc"]["itm"]) == (0, None, None, None)
    assert "–" in "".join(filter_table({"synthetic": grades}).columns[4].cells)
    assert synthetic_table({"synthetic": grades}).row_count == 1


def test_a_filter_is_graded_by_the_texts_that_match() -> None:
    texts = [
        WEB_TEXT,
        replace(WEB_TEXT, key="b", scores={"itm": 0.6}, matches=False),
        replace(WEB_TEXT, key="c", scores={"itm": 0.4}, keep=False),
        replace(WEB_TEXT, key="d", scores={"itm": 0.1}, keep=False, matches=False),
    ]
    grades = grade_filter(texts)
    assert grades.keys() == {"web"}  # no captioner
    web = grades["web"]
    assert (web["texts"], web["kept_texts"]) == (4, 2)
    assert [web[name]["value"] for name in ("kept", "right_before", "right", "recall")] == [0.5, 0.5, 0.5, 0.5]
    assert web["auc"]["itm"]["value"] == 0.75


def test_captions_are_graded_among_texts_of_equal_difficulty() -> None:
    """A score that knows difficulty alone has a high AUC over all captions, and 0.5 where the difficulty is equal."""
    texts = []
    for number in range(40):
        objects = 1 + number % 2
        for right in [True, True, True, False] if objects == 1 else [True, False, False, False]:
            scores = {"itm": 1.0 / objects}
            texts.append(replace(CAPTION, key=str(number), objects=objects, matches=right, scores=scores))
    grades = grade_filter(texts)["synthetic"]
    assert grades["auc"]["itm"]["value"] == pytest.approx(0.75)
    assert grades["auc_within_picture"]["itm"]["value"] == 0.5
    strata = grades["strata"]
    assert [strata[name]["auc"]["itm"]["value"] for name in ("one_object", "two_objects")] == [0.5, 0.5]
    assert strata["two_objects"]["share_kept"]["value"] == 0.5
    assert strata["one_object"]["right"]["value"] == 0.75


def test_the_kept_share_is_of_the_web_texts_of_each_kind() -> None:
    spam = replace(WEB_TEXT, kind="spam", matches=False)
    texts = [WEB_TEXT, spam, replace(spam, keep=False), replace(spam, keep=False, source="captioner")]
    kinds = kept_by_kind(texts)
    assert {kind: (row["texts"], row["kept"]["value"]) for kind, row in kinds.items()} == {
        "good": (1, 1.0), "spam": (2, 0.5)
    }  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write the truth of two pictures, and a filtered set with a web text and two captions of the second."""
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
    (tmp_path / "filtered" / "manifest.json").write_text("{}")
    return tmp_path


def test_texts_are_joined_with_the_truth_by_the_url(corpus: Path) -> None:
    texts = read_texts(corpus / "filtered", corpus)
    assert [(text.text, text.kind, text.matches, text.names_wrong) for text in texts] == [
        ("buy now", "spam", False, True), (EXACT[1], "synthetic", True, False), (EXACT[0], "synthetic", False, True)
    ]  # fmt: skip
    assert [text.error for text in texts[1:]] == ["", "object"]


def test_the_oracle_keeps_the_right_texts_alone(corpus: Path) -> None:
    write_oracle(corpus / "filtered", corpus, corpus / "oracle")
    table = pq.read_table(corpus / "oracle" / "00000.parquet")
    assert table["keep"].to_pylist() == [False, True, False, False]
    assert table.schema == pq.read_schema(corpus / "filtered" / "00000.parquet")
    assert (corpus / "oracle" / "manifest.json").is_file()


def test_sample_pictures_show_every_combination_of_verdicts(tmp_path: Path) -> None:
    keys = ["a", "b", "c", "d"]
    write_shard(tmp_path / "data" / "00000.tar", [TarSample(key, key.encode(), "text") for key in keys])
    texts = [replace(WEB_TEXT, key=key, keep=key in "abc") for key in keys]
    samples = sample_pictures(texts, tmp_path / "data", tmp_path / "out", n=2)
    assert [sample["picture"] for sample in samples] == ["a.jpg", "d.jpg"]
    assert (tmp_path / "out" / "d.jpg").read_bytes() == b"d"
    assert samples[1]["texts"] == [
        {"itm": 0.9, "source": "web", "text": "a dog", "keep": False, "reason": "kept", "kind": "good", "matches": True}
    ]
