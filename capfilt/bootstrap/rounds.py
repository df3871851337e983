"""The choice of the best round, and of the end of the loop, by the held-out scores of each picture.

Models that learn from their own texts improve early and then stop or get worse (arXiv 2510.16657), so the last round
need not be the best. The same pictures score every round: the interval is that of the mean difference per picture.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Scores = dict[str, float]  # picture -> score in percent
Z = 1.96  # of a two-sided 95% interval of a normal distribution


def read_scores(path: Path) -> Scores:
    """Return the score of each picture in a file of `capfilt evaluate --set scores=FILE`: CIDEr or mean recall."""
    from blipcore.metrics.ranking import picture_recall

    rows = json.loads(path.read_text(encoding="utf-8"))
    return {str(row["image_id"]): row["cider"] if "cider" in row else picture_recall(row) for row in rows}


def link_models(folder: Path, targets: Mapping[str, str]) -> None:
    """Make `folder` hold a link to each target, a model folder or hub id, in place of older links."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in targets.items():
        temporary = folder / f".{name}.partial"
        temporary.unlink(missing_ok=True)
        exists = Path(target).exists()
        temporary.symlink_to(os.path.relpath(Path(target).resolve(), folder.resolve()) if exists else target)
        temporary.replace(folder / name)


def best_round(scores: Sequence[Scores]) -> int:
    """Return the index of the highest mean score; of equal ones, the earliest."""
    return int(np.argmax([np.mean(list(of_pictures.values())) for of_pictures in scores]))


def describe_rounds(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Return per round its mean score and, from round 1 on, its rise over the best earlier round with an interval."""
    rows: list[dict[str, Any]] = []
    for number, of_pictures in enumerate(scores):
        row: dict[str, Any] = {"held_out": float(np.mean(list(of_pictures.values())))}
        if number:
            earlier = scores[best_round(scores[:number])]
            differences = np.array([of_pictures[picture] - earlier[picture] for picture in earlier])
            rise = float(differences.mean())
            margin = Z * float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
            row["rise"] = {"value": rise, "low": rise - margin, "high": rise + margin}
        rows.append(row)
    return rows


def has_stopped_rising(scores: Sequence[Scores]) -> bool:
    """Return whether the last round has no rise beyond its interval; False for round 1, the paper's only one."""
    return len(scores) > 2 and describe_rounds(scores)[-1]["rise"]["low"] <= 0
