"""Grades of captions and of retrieval, on a few pictures whose grades are known."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from capfilt.demo.grading import grade_captions, grade_retrieval
from capfilt.demo.language import write_caption
from capfilt.demo.scenes import Scene, sample_scene

SCENES: list[Scene] = [sample_scene(0, "validation", number) for number in range(2)]
EXACT: list[str] = [write_caption(scene, Random(0)) for scene in SCENES]


def test_captions_are_graded_against_the_scenes(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    truth = {f"{number}.jpg": scene.to_dict() for number, scene in enumerate(SCENES)}
    (tmp_path / "truth" / "validation.json").write_text(json.dumps(truth))

    def grade(*captions: str) -> dict[str, float]:
        # in another order than the pictures
        rows = [{"image_id": number, "caption": captions[number], "cider": 100.0 * number} for number in (1, 0)]
        for name in ("captions", "cider"):
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        grades = grade_captions(tmp_path / "captions.json", tmp_path / "cider.json", tmp_path, "validation")
        return {name: estimate["value"] for name, estimate in grades.estimates().items()}

    assert grade(*EXACT) == {"exact_match": 1.0, "true": 1.0, "object_f1": 1.0, "cider": 50.0}
    assert grade(EXACT[0], "")["exact_match"] == grade(EXACT[0], "")["true"] == 0.5
    assert grade(EXACT[0], "")["object_f1"] == pytest.approx(
        2 * len(SCENES[0].things) / (2 * len(SCENES[0].things) + len(SCENES[1].things))
    )
    assert grade(*EXACT[::-1])["exact_match"] == 0


def test_the_mean_recall_of_pictures_averages_to_that_of_the_set(tmp_path: Path) -> None:
    rows = [
        {"image_id": 0, "text_rank": 0, "image_ranks": [0, 7]},  # recall 1, 1, 1 and 1/2, 1/2, 1
        {"image_id": 1, "text_rank": None, "image_ranks": [4, None]},  # 0 and 0, 1/2, 1/2
    ]
    (tmp_path / "ranks.json").write_text(json.dumps(rows))
    assert grade_retrieval(tmp_path / "ranks.json") == pytest.approx([50 * (1 + 2 / 3), 50 / 3])
