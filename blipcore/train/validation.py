"""Validation during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blipcore.model.blip import Blip


@dataclass
class Judge:
    """How the model is judged while it trains; the best one so far is kept beside the run."""

    scores: Callable[[Blip], dict[str, float]]  # on rank 0
    by: tuple[str, ...]  # the best model has the largest sum of these scores
    every: int  # steps; the last step is judged too
