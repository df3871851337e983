"""Mixing and shuffling as functions of the position."""

import random
from collections import Counter
from fractions import Fraction
from itertools import groupby

import numpy as np
import pytest

from blipcore.data.shuffle import Mixture, Shuffle, hash_index, integer_shares


def test_a_window_mixes_its_shards_and_no_others() -> None:
    shuffle = Shuffle([50] * 6, (0,), window=3)
    shards = [shuffle.locate(position).shard for position in range(300)]
    first, second = set(shards[:150]), set(shards[150:])
    assert len(first) == len(second) == 3 and not first & second
    assert max(len(list(run)) for _, run in groupby(shards[:150])) < 15  # not shard after shard
    assert len({shuffle.locate(position) for position in range(300)}) == 300


def test_shuffles_are_uniform() -> None:
    """Each of the 8 rows comes first in about 500 of 4000 epochs."""
    shuffle = Shuffle([4, 4], (7,), window=2)
    firsts = Counter(shuffle.locate(8 * epoch)[1:] for epoch in range(4000))
    assert len(firsts) == 8 and all(400 < count < 600 for count in firsts.values())


@pytest.mark.parametrize("datasets", [2, 3, 6])
def test_shares_are_kept_in_every_run_of_samples(datasets) -> None:
    rng = random.Random(datasets)
    for _ in range(20):
        weights = [Fraction(rng.randint(1, 60)) for _ in range(datasets)]
        mixture = Mixture(weights)
        order = [mixture.locate(position) for position in range(3 * mixture.period)]
        for index, weight in enumerate(weights):
            count = np.cumsum([0] + [dataset == index for dataset, _ in order])
            excess = count - np.arange(len(count)) * float(weight / sum(weights))
            limit = 1.0 if datasets == 2 else 2.0
            # The excess of any run of samples is a difference of two of these.
            assert excess.max() - excess.min() <= limit + 1e-9
            positions = [position for dataset, position in order if dataset == index]
            assert positions == list(range(len(positions)))


def test_shares_that_do_not_fit_into_the_period_are_rounded() -> None:
    assert integer_shares([Fraction(2, 10), Fraction(8, 10)], 65536) == [1, 4]
    assert integer_shares([Fraction(12000), Fraction(2000)], 65536) == [6, 1]
    assert integer_shares([Fraction(100_000_007), Fraction(3)], 65536) == [65536, 1]
    rounded = integer_shares([Fraction("0.123456789"), Fraction("0.876543211")], 65536)
    assert rounded[0] / sum(rounded) == pytest.approx(0.123456789, abs=1e-5)


def test_upcoming_shards_are_those_of_this_window_and_the_next() -> None:
    shuffle = Shuffle([5] * 6, (0,), window=3)
    shards = [shuffle.locate(position).shard for position in range(60)]
    assert shuffle.window_at(0) == (0, 0) and shuffle.window_at(15) == (0, 1) and shuffle.window_at(30) == (1, 0)
    for position in (0, 7, 15, 29):  # the window after the last one is the first of the next epoch
        window = position // 15 * 15
        assert set(shuffle.upcoming_shards(position)) == set(shards[window : window + 30])


def test_a_hash_index_depends_on_its_key_alone() -> None:
    counts = Counter(hash_index(3, "seed", number) for number in range(3000))
    assert hash_index(3, "seed", 7) == hash_index(3, "seed", 7)
    assert counts.keys() == {0, 1, 2} and all(900 < count < 1100 for count in counts.values())
