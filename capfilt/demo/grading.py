"""Grades of the demo's captions and retrieval. They are exact, because the content of every picture is known.

In: captions and scores per picture written by `capfilt evaluate`, and the `truth/` of the corpus. Out: estimates with
95% intervals over pictures, for the demo's tables and `summary.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blipcore.metrics.ranking import picture_recall
from capfilt.demo.corpus import read_truth
from capfilt.demo.intervals import Estimate, mean_over_pictures, ratio_over_pictures
from capfilt.demo.language import exact_match, is_true, object_counts


@dataclass(frozen=True)
class CaptionGrades:
    """Grades of captions, one per held-out picture, in the order of the annotations."""

    exact: np.ndarray  # names all objects, counts and relations, and states nothing false
    true: np.ndarray  # states nothing false
    objects: np.ndarray  # (pictures, 3): nouns in caption and scene, in the caption, in the scene
    cider: np.ndarray  # in percent

    def estimates(self) -> dict[str, Estimate | None]:
        hits, named, drawn = self.objects.T
        return {
            "exact_match": mean_over_pictures(self.exact),
            "true": mean_over_pictures(self.true),
            "object_f1": ratio_over_pictures(2 * hits, named + drawn),
            "cider": mean_over_pictures(self.cider),
        }


def grade_captions(captions: Path, cider: Path, corpus: Path, split: str) -> CaptionGrades:
    """Grade the captions of a split; `captions` and `cider` are files that `capfilt evaluate` wrote."""
    texts = {row["image_id"]: row["caption"] for row in _read_json(captions)}
    scores = {row["image_id"]: row["cider"] for row in _read_json(cider)}
    pairs = [(texts[index], scene) for index, scene in enumerate(read_truth(corpus, split).values())]
    return CaptionGrades(
        np.array([exact_match(text, scene) for text, scene in pairs]),
        np.array([is_true(text, scene) for text, scene in pairs]),
        np.array([object_counts(text, scene) for text, scene in pairs]),
        np.array([scores[index] for index in range(len(pairs))]),
    )


def grade_retrieval(ranks: Path) -> np.ndarray:
    """Return the mean recall of each picture in percent, over both directions and recall at 1, 5 and 10."""
    return np.array([picture_recall(row) for row in _read_json(ranks)])


def _read_json(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))
