"""95% intervals over pictures."""

import numpy as np
import pytest

from blipcore.metrics.ranking import roc_auc
from capfilt.demo.intervals import auc_over_pictures, mean_over_pictures, ratio_over_pictures


def test_the_interval_of_a_mean_has_the_width_of_theory() -> None:
    exact = np.arange(1000) < 700
    estimate = mean_over_pictures(exact)
    assert estimate["value"] == pytest.approx(0.7)
    # 1.96 standard errors of a share of 0.7 of 1,000
    assert estimate["high"] - estimate["low"] == pytest.approx(2 * 1.96 * (0.21 / 1000) ** 0.5, rel=0.2)


def test_texts_of_one_picture_are_drawn_together() -> None:
    """Ten copies of each text add no knowledge, so the interval is as wide as without them."""
    kept, pictures = np.arange(100) % 2, np.arange(100)
    once = auc_over_pictures(pictures % 7, kept, pictures)
    copies = auc_over_pictures(np.repeat(pictures % 7, 10), np.repeat(kept, 10), np.repeat(pictures, 10))
    assert once == pytest.approx(copies)


def test_the_auc_is_that_of_the_ranking_metrics_with_ties() -> None:
    scores, right = [0.1, 0.4, 0.4, 0.8, 0.8], [False, True, False, True, False]
    assert auc_over_pictures(scores, right, list("abcde"))["value"] == pytest.approx(roc_auc(scores, right))


def test_undefined_figures_are_none() -> None:
    assert mean_over_pictures([]) is None
    assert ratio_over_pictures([0, 0], [0, 0]) is None
    assert auc_over_pictures([0.1, 0.2], [True, True], ["a", "b"]) is None
