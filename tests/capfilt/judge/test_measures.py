"""Measures of a score on a test equal plain counts; intervals hold pictures together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from public_tests import plain_tau

from capfilt.judge.formats import Case, Picture, PublicTest
from capfilt.judge.measures import area, by_group, is_right, measure, winoground

NAN = float("nan")


def case(picture: str, texts: int, truth: tuple[float, ...] = (), group: str = "") -> Case:
    return Case(Picture(picture), ["x"] * texts, truth, group)


def make(kind, cases: list[Case], **more) -> PublicTest:
    return PublicTest("test", kind, cases, Path(), **more)


def test_the_right_text_must_be_above_all_others() -> None:
    for scores, right in (([2, 1, 0], True), ([1, 1], False), ([0, 1], False), ([NAN, 0], False), ([1, NAN], False)):
        assert is_right(np.array(scores, float)) is right


def test_accuracy_and_its_mean_over_groups_are_counts() -> None:
    groups = ["a", "a", "a", "b"]
    test = make("pairs", [case(str(n), 2, group=group) for n, group in enumerate(groups)], smallest_group=1)
    scores = [np.array(pair, float) for pair in ([1, 0], [1, 0], [0, 1], [0, 1])]
    result = measure(test, scores, 200)
    assert result["accuracy"].value == 0.5 and result["mean_of_groups"].value == pytest.approx((2 / 3 + 0) / 2)
    assert by_group(test, scores) == {"a": (pytest.approx(2 / 3), 3), "b": (0.0, 1)}
    assert result["accuracy"].low <= 0.5 <= result["accuracy"].high
    only_large = make("pairs", test.cases, smallest_group=2)
    assert measure(only_large, scores, 10)["mean_of_groups"].value == pytest.approx(2 / 3)


def test_winoground_counts_text_image_and_group() -> None:
    items = [[(2, 1), (1, 2)], [(2, 1), (2, 1)], [(3, 2), (4, 5)], [(1, 1), (0, 2)]]
    scores = [np.array(row, float) for item in items for row in item]
    parts = winoground(scores)
    expected = {"text": [1, 0, 1, 0], "image": [1, 0, 0, 1], "group": [1, 0, 0, 0]}
    assert {name: values.tolist() for name, values in parts.items()} == expected
    test = make("winoground", [case(str(n), 2) for n in range(8)])
    assert {name: part.value for name, part in measure(test, scores, 10).items()} == {
        "text": 0.5,
        "image": 0.5,
        "group": 0.25,
    }


def test_correlations_with_ratings_are_kendalls() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(1, 5, 40).astype(float)
    scores = truth + generator.integers(-2, 3, 40)
    test = make("ratings", [case(str(n), 4, tuple(truth[4 * n : 4 * n + 4])) for n in range(10)], tau="c")
    result = measure(test, list(scores.reshape(10, 4)), 50)
    assert list(result) == ["tau_c", "tau_b"]
    for name, interval in result.items():
        assert interval.value == pytest.approx(plain_tau(list(scores), list(truth), name[-1]))


def test_the_area_of_labels_is_the_share_of_ordered_pairs_and_unjudged_texts_are_left_out() -> None:
    scores, truth = np.array([0.9, 0.5, 0.5, 0.1, NAN]), (1.0, 1.0, 0.0, 0.0, 1.0)
    assert area(scores[:4], np.array(truth[:4])) == (2 + 0.5 + 1) / 4
    test = make("labels", [case(str(n), 1, (label,)) for n, label in enumerate(truth)])
    assert measure(test, list(scores.reshape(5, 1)), 50)["auc"].value == (2 + 0.5 + 1) / 4
    assert np.isnan(area(scores[:2], np.array([1.0, 1.0])))


def test_the_interval_is_wider_when_cases_share_pictures() -> None:
    right = [np.array([float(n % 20 < 10), 0.5]) for n in range(100)]
    apart = measure(make("pairs", [case(str(n), 2) for n in range(100)]), right, 500)["accuracy"]
    shared = measure(make("pairs", [case(str(n // 10), 2) for n in range(100)]), right, 500)["accuracy"]
    assert apart.value == shared.value == 0.5
    assert shared.high - shared.low > 2 * (apart.high - apart.low) > 0.2
