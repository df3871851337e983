"""Logistic regression on labels, cross-fitted by picture; the only file that imports scikit-learn.

The features are standardized. The strength of the L2 penalty is chosen by log loss on folds of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from capfilt.filter.intervals import MIN_LABELS

FOLDS = 5
# Inverse penalties per feature: the prior variance of the logit is their number times this.
STRENGTHS = (0.1, 0.4, 1.6)


@dataclass(frozen=True)
class Logistic:
    """A fitted model: logit = features @ weights + bias."""

    weights: np.ndarray
    bias: float

    def logit(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weights + self.bias


@dataclass(frozen=True)
class CrossFit:
    """A model of all labels, and the logit of each label from a model that saw none of its fold."""

    model: Logistic
    held_out: np.ndarray


def cross_fit(features: np.ndarray, match: np.ndarray, fold: np.ndarray, free: int = 0) -> CrossFit:
    """Fit `match` (R,) on `features` (R, D), and once more without each fold.

    `fold` (R,) holds numbers below FOLDS, the same for all labels of a picture. The last `free` features are
    penalized less: they are expected to matter. Raises ValueError for fewer than MIN_LABELS right or wrong labels.
    """
    right, wrong = int(match.sum()), int((~match).sum())
    if min(right, wrong) < MIN_LABELS:
        raise ValueError(
            f"The labels with scores are {right} right and {wrong} wrong; learning needs at least {MIN_LABELS} of each."
        )
    held_out = np.zeros(len(match))
    for part in range(FOLDS):
        others = fold != part
        held_out[~others] = _fit_best(features[others], match[others], fold[others], free).logit(features[~others])
    return CrossFit(_fit_best(features, match, fold, free), held_out)


def _fit_best(features: np.ndarray, match: np.ndarray, fold: np.ndarray, free: int) -> Logistic:
    """Fit with the penalty of the lowest log loss on held-out folds."""
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for strength, part in product(STRENGTHS, np.unique(fold)):
        others = fold != part
        if others.any():
            logit = _fit(features[others], match[others], strength, free).logit(features[~others])
            losses[strength] += float(np.logaddexp(0, np.where(match[~others], -logit, logit)).sum())
    return _fit(features, match, min(losses, key=lambda strength: losses[strength]), free)


def _fit(features: np.ndarray, match: np.ndarray, strength: float, free: int) -> Logistic:
    if match.all() or not match.any():  # of this part of the labels
        return Logistic(np.zeros(features.shape[1]), float(np.log((match.sum() + 0.5) / ((~match).sum() + 0.5))))
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, np.inf)  # a constant feature gets no weight
    scale[len(scale) - free :] /= 3
    model = LogisticRegression(C=strength / features.shape[1], max_iter=1000).fit((features - mean) / scale, match)
    weights = model.coef_[0] / scale
    return Logistic(weights, float(model.intercept_[0] - mean @ weights))
