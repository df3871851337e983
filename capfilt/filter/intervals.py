"""95% intervals of shares and of areas under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# 1 - confidence level of the intervals.
ALPHA = 0.05
# Labels of each kind, right and wrong, that an AUC needs for an interval.
MIN_LABELS = 10
# Draws of the bootstrap, and how many are in memory together.
DRAWS, DRAWS_AT_ONCE = 1000, 50


class Auc(NamedTuple):
    """Area under the ROC curve with its interval; `right` and `wrong` are the numbers of labels.

    The chance that a right text scores above a wrong one, ties counting one half: 0.5 is no better than chance.
    """

    value: float
    low: float
    high: float
    right: int
    wrong: int

    @property
    def has_signal(self) -> bool:
        """True if the interval is above 0.5."""
        return self.low > 0.5

    def __str__(self) -> str:
        numbers = f"{self.right} right and {self.wrong} wrong"
        if math.isnan(self.value):
            return f"AUC unknown, no signal ({numbers})"
        signal = "" if self.has_signal else ", no signal" if self.high >= 0.5 else ", below chance"
        return f"AUC {self.value:.3f} ({self.low:.3f} to {self.high:.3f}{signal}; {numbers})"


def auc_interval(scores: np.ndarray, match: np.ndarray, picture: np.ndarray, draws: int = DRAWS) -> Auc:
    """Return the AUC of `scores` (R,) for the mask `match`, with its bootstrap interval over pictures.

    `picture` (R,) numbers the pictures. Without `draws` the interval is NaN, and with fewer than MIN_LABELS of a kind
    it is 0 to 1. Rows without a score are left out. All is NaN if all match or none does.
    """
    known = ~np.isnan(scores)
    scores, match = scores[known], match[known]
    right, wrong = int(match.sum()), int((~match).sum())
    if not right or not wrong:
        return Auc(math.nan, math.nan, math.nan, right, wrong)
    _, picture = np.unique(picture[known], return_inverse=True)
    _, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    match, picture = match[order], picture[order]

    def weighted_auc(weights: np.ndarray) -> np.ndarray:
        """Return the AUC of each row of weights (N, R)."""
        positive = np.add.reduceat(weights * match, starts, axis=1)
        negative = np.add.reduceat(weights * ~match, starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        total = positive.sum(axis=1) * negative.sum(axis=1)
        return (positive * below).sum(axis=1) / np.where(total > 0, total, np.nan)

    value = float(weighted_auc(np.ones((1, len(match))))[0])
    if not draws:
        return Auc(value, math.nan, math.nan, right, wrong)
    if min(right, wrong) < MIN_LABELS:  # the bootstrap of so few is too narrow
        return Auc(value, 0.0, 1.0, right, wrong)
    rng, number = np.random.default_rng(0), int(picture.max()) + 1
    drawn = [
        weighted_auc(rng.multinomial(number, np.full(number, 1 / number), DRAWS_AT_ONCE)[:, picture].astype(float))
        for _ in range(draws // DRAWS_AT_ONCE)
    ]
    low, high = np.nanquantile(np.concatenate(drawn), [ALPHA / 2, 1 - ALPHA / 2])
    return Auc(value, float(low), float(high), right, wrong)


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% Clopper-Pearson interval of a binomial proportion.

    At the lower bound, at least `successes` have probability ALPHA / 2; at the upper one, at most `successes`.
    """
    numbers = np.arange(trials + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(numbers[1:]))])
    log_binomials = log_factorials[trials] - log_factorials - log_factorials[::-1]

    def tail(proportion: float, tail_numbers: np.ndarray) -> float:
        log_odds = tail_numbers * math.log(proportion) + (trials - tail_numbers) * math.log1p(-proportion)
        return float(np.exp(log_binomials[tail_numbers] + log_odds).sum())

    low, high = 0.0, 1.0
    if successes:
        low = _bisect(lambda proportion: tail(proportion, numbers[successes:]) - ALPHA / 2)
    if successes < trials:
        high = _bisect(lambda proportion: ALPHA / 2 - tail(proportion, numbers[: successes + 1]))
    return low, high


def _bisect(increasing: Callable[[float], float]) -> float:
    """Return the root of an increasing function between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) > 0 else (middle, high)
    return high
