"""Intervals of shares against published values, and of AUCs against draws from a known population."""

from __future__ import annotations

import math

import numpy as np
import pytest

from capfilt.filter.intervals import auc_interval, clopper_pearson


def test_clopper_pearson_against_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 5: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for right, total, low, high in [
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ]:
        assert clopper_pearson(right, total) == pytest.approx((low, high), abs=5e-5)
        assert clopper_pearson(total - right, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_an_auc_counts_pairs_and_half_of_the_ties() -> None:
    scores, match = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    auc = auc_interval(scores, match, np.arange(4))
    assert auc.value == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert (auc.right, auc.wrong) == (2, 2)
    assert (auc.low, auc.high) == (0, 1) and not auc.has_signal  # of four labels
    with_missing = auc_interval(np.append(scores, np.nan), np.append(match, True), np.arange(5))
    assert with_missing == auc
    assert math.isnan(auc_interval(scores, np.ones(4, bool), np.arange(4)).value)
    assert "unknown" in str(auc_interval(scores, np.ones(4, bool), np.arange(4)))


def test_the_interval_of_an_auc_covers_the_truth_and_says_where_there_is_no_signal() -> None:
    rng = np.random.default_rng(0)
    covered = signals = 0
    for _ in range(30):
        match = rng.random(150) < 0.6
        noise = rng.normal(size=150)
        # Two normal populations one apart: the AUC is the normal distribution at 1 / sqrt(2).
        auc = auc_interval(noise + match, match, np.arange(150), draws=100)
        covered += auc.low <= 0.7602 <= auc.high
        signals += auc_interval(noise, match, np.arange(150), draws=100).has_signal
    assert covered >= 25
    assert signals <= 3
    assert "no signal" in str(auc_interval(np.arange(150) % 2, match, np.arange(150)))


def test_texts_of_one_picture_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    match = np.repeat(rng.random(40) < 0.5, 10)
    scores = np.repeat(rng.normal(size=40), 10) + match
    together = auc_interval(scores, match, np.repeat(np.arange(40), 10))
    apart = auc_interval(scores, match, np.arange(400))
    assert together.value == apart.value
    assert together.high - together.low > 2 * (apart.high - apart.low)
