"""The scores of the training runs per held-out picture, from the files that `capfilt evaluate` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from capfilt.trial.plan import Test, TrialConfig, training_runs

RECALL_AT = (1, 5, 10)
# Test -> name of its score, the mean over pictures.
SCORE_NAMES: dict[Test, str] = {"caption": "CIDEr", "retrieval": "mean recall"}


def read_scores(config: TrialConfig, test: Test) -> list[np.ndarray]:
    """Return the scores (seeds, pictures) of each set. Raises ValueError if two files are of different pictures."""
    by_set: list[list[np.ndarray]] = [[] for _ in config.selections]
    pictures: list[Any] | None = None
    for run in training_runs(config):
        rows = _read_rows(run.scores(test))
        names = [row["image_id"] for row in rows]
        if pictures not in (None, names):
            raise ValueError(f"{run.scores(test)} has other pictures than the runs before it; remove {config.out}.")
        pictures = names
        by_set[run.number].append(np.array([SCORES[test](row) for row in rows]))
    return [np.stack(scores) for scores in by_set]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def picture_recall(row: dict[str, Any]) -> float:
    """Return the mean of a picture's recalls at 1, 5 and 10 in percent: of its texts by it, and of it by its texts."""
    ranks = [np.inf if rank is None else rank for rank in (row["text_rank"], *row["image_ranks"])]
    recalls = [[rank < k for rank in ranks] for k in RECALL_AT]
    return 100.0 * float(np.mean([[found[0], np.mean(found[1:])] for found in recalls]))


SCORES = {"caption": lambda row: row["cider"], "retrieval": picture_recall}
