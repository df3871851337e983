"""The scores of the training runs per held-out picture, from the files that `capfilt evaluate` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from capfilt.trial.plan import Test, TrialConfig, training_runs

# Test -> name of its score, the mean over pictures.
SCORE_NAMES: dict[Test, str] = {"caption": "CIDEr", "retrieval": "mean recall"}


def read_scores(config: TrialConfig, test: Test) -> list[np.ndarray]:
    """Return the scores (seeds, pictures) of each set. Raises ValueError if two files are of different pictures."""
    from blipcore.metrics.ranking import picture_recall

    by_set: list[list[np.ndarray]] = [[] for _ in config.selections]
    pictures: list[Any] | None = None
    for run in training_runs(config):
        rows = _read_rows(run.scores(test))
        names = [row["image_id"] for row in rows]
        if pictures not in (None, names):
            raise ValueError(f"{run.scores(test)} has other pictures than the runs before it; remove {config.out}.")
        pictures = names
        by_set[run.number].append(
            np.array([row["cider"] if test == "caption" else picture_recall(row) for row in rows])
        )
    return [np.stack(scores) for scores in by_set]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))
