"""95% intervals over pictures, by the bootstrap: pictures are drawn with replacement, and all texts of one together.

They cover the choice of pictures, not the variation between training runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 300
PERCENTILES = (2.5, 97.5)
Estimate = dict[str, float]  # value, low, high
Values = Sequence[float] | np.ndarray


def mean_over_pictures(values: Values) -> Estimate | None:
    """Return the mean of one number per picture with its interval; None without pictures."""
    numbers = np.asarray(values, float)
    return ratio_over_pictures(numbers, np.ones(len(numbers)))


def ratio_over_pictures(numerators: Values, denominators: Values) -> Estimate | None:
    """Return the ratio of two sums over pictures with its interval; None if the denominator is 0."""
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    if not below.sum():
        return None
    drawn = _draw(len(above))
    sums = below[drawn].sum(1)
    ratios = above[drawn].sum(1)[sums > 0] / sums[sums > 0]
    return _estimate(above.sum() / below.sum(), ratios)


def auc_over_pictures(scores: Values, right: Values, pictures: Sequence[str]) -> Estimate | None:
    """Return the AUC of the scores of texts, right against wrong; None if all or no texts are right.

    `pictures` names the picture of each text.
    """
    positive = np.asarray(right, bool)
    if positive.all() or not positive.any():
        return None
    _, group = np.unique(np.asarray(scores, float), return_inverse=True)  # texts with equal scores
    _, picture = np.unique(np.asarray(pictures), return_inverse=True)

    def auc(weights: np.ndarray) -> float:
        above = np.bincount(group, weights * positive)
        below = np.bincount(group, weights * ~positive)
        concordant = (above * (np.cumsum(below) - below / 2)).sum()
        pairs = above.sum() * below.sum()
        return concordant / pairs if pairs else float("nan")

    number = picture.max() + 1
    resampled = [auc(np.bincount(drawn, minlength=number)[picture]) for drawn in _draw(number)]
    return _estimate(auc(np.ones(len(group))), np.asarray(resampled))


def _draw(pictures: int) -> np.ndarray:
    """Return the indices of the pictures of each resample, the same in every run."""
    return np.random.default_rng(0).integers(0, pictures, (RESAMPLES, pictures))


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.nanpercentile(resampled, PERCENTILES)
    return {"value": float(value), "low": float(low), "high": float(high)}
