"""Measures of a score on a test: shares of right choices, rank correlation, area under the curve; with intervals.

An interval is that of 1,000 resamples over pictures, because the texts of a picture are not independent. A case without
a score counts as a wrong choice, and is left out of correlations and areas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from capfilt.judge.formats import PublicTest

# Scores of a test: per case an array of one number per text, NaN for none.
Scores = Sequence[np.ndarray]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its interval."""

    value: float
    low: float
    high: float


def measure(test: PublicTest, scores: Scores, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Return the measures of a test by name."""
    if test.kind == "pairs":
        right = np.array([float(is_right(case)) for case in scores])
        measures = _means({"accuracy": right}, test, resamples, seed)
        groups = [case.group for case in test.cases]
        if len(set(groups)) > 1:
            measures["mean_of_groups"] = _mean_of_groups(right, test, groups, resamples, seed)
        return measures
    if test.kind == "winoground":
        return _means(winoground(scores), test, resamples, seed, per=2)
    flat = np.concatenate(list(scores)) if len(scores) else np.zeros(0)
    truth = np.concatenate([np.array(case.truth, float) for case in test.cases]) if test.cases else np.zeros(0)
    picture = np.repeat(_picture_numbers(test), [len(case.texts) for case in test.cases])
    known = ~np.isnan(flat)
    functions: dict[str, Callable[..., float]] = {"auc": area} if test.kind == "labels" else {
        f"tau_{variant}": _kendall(variant) for variant in (test.tau, "b" if test.tau == "c" else "c")
    }  # fmt: skip
    measures = {}
    for name, function in functions.items():

        def value(rows: np.ndarray, function: Callable[..., float] = function) -> float:
            return function(flat[known][rows], truth[known][rows])

        measures[name] = _resample(value, picture[known], resamples, seed)
    return measures


def is_right(scores: np.ndarray) -> bool:
    """Return whether the first text has a higher score than every other one; equal scores are wrong."""
    return bool(scores[0] > np.max(scores[1:])) if not np.isnan(scores).any() else False


def by_group(test: PublicTest, scores: Scores) -> dict[str, tuple[float, int]]:
    """Return the share of right choices and the number of cases per group."""
    right: dict[str, list[bool]] = {}
    for case, values in zip(test.cases, scores, strict=True):
        right.setdefault(case.group, []).append(is_right(values))
    return {group: (float(np.mean(choices)), len(choices)) for group, choices in sorted(right.items())}


def winoground(scores: Scores) -> dict[str, np.ndarray]:
    """Return the text, image and group score of each item (arXiv 2204.03162, section 3): 1 or 0.

    Cases 2i and 2i+1 are the pictures of item i, each with both texts.
    """
    first, second = (np.stack(list(scores[place::2])) for place in (0, 1))  # (N, 2) each
    text = (first[:, 0] > first[:, 1]) & (second[:, 1] > second[:, 0])
    image = (first[:, 0] > second[:, 0]) & (second[:, 1] > first[:, 1])
    return {name: values.astype(float) for name, values in (("text", text), ("image", image), ("group", text & image))}


def area(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the probability that a right text has a higher score than a wrong one, ties counted half."""
    from scipy.stats import rankdata

    right = truth > 0.5
    n, m = int(right.sum()), int((~right).sum())
    if not n or not m:
        return float("nan")
    return float((rankdata(scores)[right].sum() - n * (n + 1) / 2) / (n * m))


def _kendall(variant: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def tau(scores: np.ndarray, truth: np.ndarray) -> float:
        from scipy.stats import kendalltau

        return float(kendalltau(scores, truth, variant=variant).statistic) if len(scores) > 1 else float("nan")

    return tau


def _means(
    values: dict[str, np.ndarray], test: PublicTest, resamples: int, seed: int, per: int = 1
) -> dict[str, Interval]:
    """Return the mean of each array, one number per `per` cases."""
    pictures = _picture_numbers(test)[::per]
    means = {}
    for name, numbers in values.items():

        def mean(rows: np.ndarray, numbers: np.ndarray = numbers) -> float:
            return float(numbers[rows].mean())

        means[name] = _resample(mean, pictures, resamples, seed)
    return means


def _mean_of_groups(right: np.ndarray, test: PublicTest, groups: Sequence[str], resamples: int, seed: int) -> Interval:
    """Return the mean over groups of the share of right choices."""
    names, codes = np.unique(np.array(groups), return_inverse=True)
    large = np.bincount(codes) >= test.smallest_group
    if not large.any():
        large[:] = True

    def mean(rows: np.ndarray) -> float:
        counts = np.bincount(codes[rows], minlength=len(names))
        sums = np.bincount(codes[rows], weights=right[rows], minlength=len(names))
        use = large & (counts > 0)
        return float((sums[use] / counts[use]).mean())

    return _resample(mean, _picture_numbers(test), resamples, seed)


def _picture_numbers(test: PublicTest) -> np.ndarray:
    """Return a number per case, the same for cases of the same picture file."""
    numbers: dict[tuple[str | None, str], int] = {}
    return np.array(
        [numbers.setdefault((case.picture.shard, case.picture.path), len(numbers)) for case in test.cases], int
    )


def _resample(function: Callable[[np.ndarray], float], pictures: np.ndarray, resamples: int, seed: int) -> Interval:
    """Return the value of `function` on all rows, with its bootstrap interval over pictures."""
    if not len(pictures):
        return Interval(float("nan"), float("nan"), float("nan"))
    order = np.argsort(pictures, kind="stable")
    names, starts = np.unique(pictures[order], return_index=True)
    rows_of = np.split(order, starts[1:])
    generator = np.random.default_rng(seed)
    values = [
        function(np.concatenate([rows_of[number] for number in generator.integers(0, len(names), len(names))]))
        for _ in range(resamples)
    ]
    known = [value for value in values if not np.isnan(value)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known else (float("nan"),) * 2
    return Interval(function(np.arange(len(pictures))), float(low), float(high))
