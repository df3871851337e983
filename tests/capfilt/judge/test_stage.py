"""`capfilt evaluate judge` on miniatures of the public tests: counts as computed by hand, and a blind control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from public_tests import aro, closeness, flickr8k, foil, ohd_caps, plain_tau, sugarcrepe, winoground

from capfilt.judge.stage import JudgeRun, evaluate_judge, format_table

SCORER = "public_tests:ColourScorer"


def evaluate(path: Path, **options: Any) -> dict[str, Any]:
    options = {"scorer": SCORER, "device": "cpu", "resamples": 50} | options
    return evaluate_judge(JudgeRun(annotations=str(path), **options), progress=False)


def row(summary: dict[str, Any], score: str, measure: str) -> dict[str, Any]:
    (found,) = [row for row in summary["rows"] if (row["score"], row["measure"]) == (score, measure)]
    return found


def background(path: Path, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Return the colour of a picture's background, read independently."""
    image = Image.open(path).convert("RGB")
    return np.asarray(image.crop(box) if box else image)[:3].reshape(-1, 3).mean(0)


def test_pairs_are_counted_as_the_tests_own_scripts_do(tmp_path: Path) -> None:
    summary = evaluate(sugarcrepe(tmp_path / "sugar", 8))
    rows = json.loads((tmp_path / "sugar/replace_att.json").read_text())
    right = sum(
        closeness(background(tmp_path / "sugar" / item["filename"]), item["caption"])
        > closeness(background(tmp_path / "sugar" / item["filename"]), item["negative_caption"])
        for item in rows.values()
    )
    colour = row(summary, "colour", "accuracy")
    assert colour["value"] == right / 8 == 0.75
    assert colour["interval"][0] < 0.75 < colour["interval"][1] and colour["blind"] < 0.75
    length = row(summary, "length", "accuracy")  # reads no picture
    assert length["value"] == length["blind"]
    assert (summary["test"], summary["cases"], summary["texts"], summary["pictures"]) == ("SugarCrepe", 8, 16, 8)
    assert row(evaluate(ohd_caps(tmp_path / "ohd", 6)), "colour", "accuracy")["value"] == pytest.approx(5 / 6, abs=1e-4)
    assert row(evaluate(foil(tmp_path / "foil", 6)), "colour", "accuracy")["value"] == 1.0


def test_aro_is_judged_inside_the_box(tmp_path: Path) -> None:
    summary = evaluate(aro(tmp_path, 6))
    assert row(summary, "colour", "accuracy")["value"] == 1.0
    assert summary["groups"]["colour"] == {"near": (1.0, 2), "on": (1.0, 4)}
    whole = json.loads((tmp_path / "visual_genome_relation.json").read_text())
    wide = [item | {"bbox_x": 0, "bbox_w": 128} for item in whole]
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    assert row(evaluate(tmp_path / "wide.json"), "colour", "accuracy")["value"] < 1.0
    (tmp_path / "far.json").write_text(json.dumps([*whole, whole[1] | {"bbox_x": 200}]))
    with pytest.raises(ValueError, match=r"box from \(200, 0\) to \(264, 64\) in 1\.png, which has 128 x 64 pixels"):
        evaluate(tmp_path / "far.json")


def test_winoground_has_text_image_and_group_scores(tmp_path: Path) -> None:
    summary = evaluate(winoground(tmp_path, 4), image_root=str(tmp_path / "images"))
    values = {measure: row(summary, "colour", measure)["value"] for measure in ("text", "image", "group")}
    assert values == {"text": 0.75, "image": 0.75, "group": 0.75} and summary["cases"] == 4


def test_ratings_have_kendalls_tau(tmp_path: Path) -> None:
    expert, crowd = flickr8k(tmp_path, 6)
    for path, name in ((expert, "tau_c"), (crowd, "tau_b")):
        found = row(evaluate(path, results=str(tmp_path / "out.json")), "colour", name)
        cases = json.loads((tmp_path / "out.json").read_text())
        ratings = [rating for case in cases for rating in case["truth"]]
        for side, value in (("scores", found["value"]), ("blind", found["blind"])):
            scores = [score for case in cases for score in case[side]["colour"]]
            assert value == pytest.approx(plain_tau(scores, ratings, name[-1]), abs=1e-4)


def test_the_scores_of_every_case_are_written(tmp_path: Path) -> None:
    summary = evaluate(sugarcrepe(tmp_path, 4), results=str(tmp_path / "out.json"))
    rows = json.loads((tmp_path / "out.json").read_text())
    right = [item["scores"]["colour"][0] > item["scores"]["colour"][1] for item in rows]
    assert sum(right) / 4 == row(summary, "colour", "accuracy")["value"]
    assert all(item["blind"]["colour"] != item["scores"]["colour"] for item in rows)
    assert rows[1]["blind"]["length"] == rows[1]["scores"]["length"]


def test_a_filter_is_judged_like_any_other_score(tmp_path: Path, tiny_filter) -> None:
    summary = evaluate(sugarcrepe(tmp_path, 4), model=str(tiny_filter), scorer=None, dtype="fp32")
    assert {row["score"] for row in summary["rows"]} == {"itm", "itc"}
    table = format_table(summary)
    assert table[0].split() == ["score", "measure", "value", "95%", "interval", "blind", "95%", "interval"]
    assert len(table) == 3 and " to " in table[1]


def test_a_learned_mix_is_measured_like_a_score(tmp_path: Path, tiny_filter) -> None:
    path, folder = sugarcrepe(tmp_path / "sugar", 4), tmp_path / "filtered"
    mix = {"columns": ["itm", "itc", "confidence"], "probabilities": ["itm"], "bias": 1.0}
    mix |= {
        "means": {"itm": 0.0, "itc": 0.0, "confidence": 0.5},
        "sources": [],
        "weights": {"itc": 2.0, "confidence": 1.0},
    }
    folder.mkdir()
    manifest = {"stage": "filter", "config": {}, "computed": {"mix": mix}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    out = str(tmp_path / "out.json")
    options = {"model": str(tiny_filter), "scorer": None, "dtype": "fp32", "results": out}
    summary = evaluate(path, mix=str(folder), **options)
    assert {row["score"] for row in summary["rows"]} == {"itm", "itc", "mix"}
    for case in json.loads(Path(out).read_text()):
        for side in ("scores", "blind"):
            logits = [1.0 + 2 * itc + 0.5 for itc in case[side]["itc"]]
            assert case[side]["mix"] == pytest.approx([1 / (1 + np.exp(-logit)) for logit in logits], abs=1e-5)
    with pytest.raises(ValueError, match="needs the scores itm, itc"):
        evaluate(path, mix=str(folder))
    with pytest.raises(ValueError, match="has no learned mix"):
        evaluate(path, mix=str(tmp_path), **options)


def test_mistakes_are_found_before_anything_is_scored(tmp_path: Path) -> None:
    path = sugarcrepe(tmp_path, 4)
    with pytest.raises(ValueError, match="Name the scores to test"):
        evaluate(path, scorer=None)
    (tmp_path / "002.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 picture of .* cannot be decoded"):
        evaluate(path)
    (tmp_path / "002.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 picture of .* cannot be found"):
        evaluate(path)
    with pytest.raises(ValueError, match="--image-root"):
        evaluate(path, image_root=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="has one picture, and the blind control needs at least two"):
        evaluate(sugarcrepe(tmp_path / "one", 1))
    with pytest.raises(ValueError, match="is a folder"):
        evaluate(path, results=str(tmp_path))
