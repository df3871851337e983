"""Intervals of differences: equal selections are not told apart in 95% of trials, planted differences are found."""

from __future__ import annotations

import numpy as np
import pytest

from capfilt.trial.intervals import difference


def draw(rng: np.random.Generator, runs: int, by_seed: float, better: float = 0.0) -> list[np.ndarray]:
    """Return scores (runs, pictures) of two sets, as CIDEr varies: pictures most, then the runs on each picture."""
    pictures = rng.normal(200, 50, 100)
    sets = []
    for shift in (0.0, better):
        of_runs = rng.normal(shift, by_seed, (runs, 1))
        sets.append(pictures + of_runs + rng.normal(0, 30, (runs, len(pictures))))
    return sets


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("by_seed", [1.0, 10.0])
def test_equal_sets_are_not_told_apart_in_95_percent_of_trials(runs: int, by_seed: float) -> None:
    rng = np.random.default_rng(runs)
    clear = [difference(*draw(rng, runs, by_seed)).is_clear for _ in range(300)]
    assert np.mean(clear) <= 0.05


def test_a_bootstrap_over_three_seeds_would_be_too_narrow() -> None:
    """The reason why the interval is Student's."""
    rng = np.random.default_rng(0)

    def covers_zero(first: np.ndarray, second: np.ndarray) -> bool:
        drawn = rng.integers(0, 3, (2, 500, 3))
        means = second.mean(axis=1)[drawn[1]].mean(axis=1) - first.mean(axis=1)[drawn[0]].mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        return bool(low <= 0 <= high)

    assert np.mean([covers_zero(*draw(rng, 3, 10.0)) for _ in range(150)]) < 0.9


def test_a_planted_difference_is_found_and_has_its_sign() -> None:
    rng = np.random.default_rng(0)
    found = [difference(*draw(rng, 3, 3.0, better=20.0)) for _ in range(100)]
    assert np.mean([result.low > 0 for result in found]) > 0.9
    assert np.mean([result.value for result in found]) == pytest.approx(20, abs=1)
    assert np.mean([result.low <= 20 <= result.high for result in found]) >= 0.95
    first, second = draw(rng, 3, 1.0, better=20.0)
    assert difference(second, first).high < 0


def test_the_interval_by_hand() -> None:
    """Two runs per set and pictures without a difference: only the seeds' variances count, 2 degrees of freedom."""
    first, second = np.array([[0.0, 0.0], [2.0, 2.0]]), np.array([[10.0, 10.0], [12.0, 12.0]])
    result = difference(first, second)
    margin = 4.302653 * np.sqrt(2 * 2.0 / 2)  # Student's t at 0.975
    assert result == pytest.approx((10, 10 - margin, 10 + margin, 1.0), rel=1e-5)
    assert difference(first, first + 0) == pytest.approx((0, -margin, margin, 1.0), rel=1e-5)
    constant = np.zeros((2, 4))
    assert difference(constant, constant) == (0.0, 0.0, 0.0, 0.0) and not difference(constant, constant).is_clear
