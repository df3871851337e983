"""Mixtures of texts: what a spelling means, the probabilities it gives, and the draws that follow them."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from blipcore.io.text_mixture import TextMixture, count_draws, draw, hash_fraction, shortest_ratio

# Two pictures: one has a web text and two captions, the other a caption only.
PICTURES, SOURCES = ["a", "a", "a", "b"], ["web", "blip", "blip", "blip"]
TEXTS = ["x" * 10, "x" * 20, "x" * 30, "x"]


def probabilities(spec: str, scores: list[float | None] | None = None) -> list[float]:
    """Return the probabilities of the four texts, rounded."""
    drawn = TextMixture.parse(spec).probabilities(PICTURES, SOURCES, TEXTS, scores)
    return [round(float(value), 6) for value in drawn]


def test_shares_are_divided_among_the_texts_of_a_source_and_a_missing_source_gives_its_share_to_the_others() -> None:
    assert probabilities("web=0.5,blip=0.5") == [0.5, 0.25, 0.25, 1.0]
    assert probabilities(" web = 1, blip=3 ") == [0.25, 0.375, 0.375, 1.0]
    assert probabilities("equal") == [0.333333, 0.333333, 0.333333, 1.0]


def test_a_picture_without_a_text_of_positive_share_has_no_probability() -> None:
    assert probabilities("web=1,blip=0") == [1.0, 0.0, 0.0, 0.0]


def test_a_temperature_weighs_texts_by_score_or_by_length() -> None:
    e = math.exp
    total = e(0.9 / 0.1) + e(0.8 / 0.1) + e(0.7 / 0.1)
    expected = [e(9) / total, e(8) / total, e(7) / total, 1.0]
    assert probabilities("itm/0.1", [0.9, 0.8, 0.7, 0.2]) == [round(value, 6) for value in expected]
    short, middle, long, _ = probabilities("length/-10")
    assert short / middle == pytest.approx(middle / long, rel=1e-4) == pytest.approx(e(1), rel=1e-4)
    both = probabilities("web=0.5,blip=0.5,length/10")
    assert both[0] == 0.5 and both[2] / both[1] == pytest.approx(e(1), rel=1e-4) and both[1] + both[2] == 0.5


def test_a_text_without_a_score_is_drawn_only_if_its_group_has_no_other() -> None:
    assert probabilities("itm/0.1", [None, 0.5, float("nan"), None]) == [0.0, 1.0, 0.0, 1.0]
    assert probabilities("web=0.5,blip=0.5,itm/0.1", [None, 0.5, None, None]) == [0.5, 0.5, 0.0, 1.0]
    assert probabilities("itm/1e-9", [1e30, 0.0, -1e30, 0.0]) == [1.0, 0.0, 0.0, 1.0]


def test_no_texts_have_no_probabilities() -> None:
    assert len(TextMixture.parse("web=1").probabilities([], [], [], [])) == 0


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "has the part ''"),
        ("web", "has the part 'web'"),
        ("web=0.5;blip=0.5", "has the part"),
        ("web=half", "has the part 'web=half'"),
        ("web=nan", "has the part"),
        ("web=-1,blip=2", "0 or more, not -1"),
        ("web=0", "no source a share above 0"),
        ("web=1,web=2", "'web' twice"),
        ("itm/0", "a temperature of at least 1e-100"),
        ("length/1e-310", "a temperature of at least 1e-100"),
        ("itm/1,itc/1", "one score"),
        ("equal,web=1", "has the part 'equal'"),
    ],
)
def test_a_spelling_that_means_nothing_is_refused_with_its_part(spec: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        TextMixture.parse(spec)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("web=1", "add blip=0 to leave"),
        ("web=1,blip=1,kosmos=1", "no texts of 'kosmos'; its sources are blip, web"),
        ("clip/0.1", "no score 'clip'.*it has length, itm, itc"),
    ],
)
def test_a_mixture_must_fit_the_sources_and_scores_of_a_set(spec: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TextMixture.parse(spec).require(["blip", "web"], ["itm", "itc"], "r1")
    TextMixture.parse("length/9").require(["blip", "web"], [], "r1")


def chi_square(counts: Counter[int], expected: list[float]) -> float:
    """Return the statistic of `counts` against probabilities; texts of probability 0 must not occur."""
    total = sum(counts.values())
    assert not any(counts[index] for index, share in enumerate(expected) if not share)
    return sum((counts[index] - total * share) ** 2 / (total * share) for index, share in enumerate(expected) if share)


@pytest.mark.parametrize("expected", [[0.5, 0.25, 0.25], [0.7, 0.3], [0.05, 0.9, 0.0, 0.05], [1.0]])
def test_frequencies_drawn_match_the_probabilities(expected: list[float]) -> None:
    counts = Counter(draw(expected, hash_fraction(42, epoch, "a picture")) for epoch in range(4000))
    assert chi_square(counts, expected) < 16.3  # 99.9% quantile of 3 degrees of freedom


def test_evenly_spaced_draws_are_the_expected_counts_rounded_and_exact_over_many_pictures() -> None:
    assert count_draws([0.5, 0.5], 10, 0.0) == count_draws([0.5, 0.5], 10, 0.999) == [5, 5]
    assert count_draws([0.7, 0.3], 10, 0.4) == [7, 3]
    expected, totals = [0.62, 0.27, 0.11], [0, 0, 0]
    for picture in range(1000):
        counts = count_draws(expected, 10, hash_fraction(picture))
        assert all(math.floor(10 * p) <= count <= math.ceil(10 * p) for p, count in zip(expected, counts, strict=True))
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
    assert [total / 10_000 for total in totals] == pytest.approx(expected, abs=0.004)


def test_a_ratio_is_reduced() -> None:
    assert shortest_ratio([5, 5]) == [1, 1] and shortest_ratio([7, 3]) == [7, 3] and shortest_ratio([0, 10]) == [0, 1]
