"""Mixes data sets and shuffles their shards and rows as pure functions of the position."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

MAX_PERIOD = 1 << 16  # slots of the mixing schedule: shares are exact to 1/65536


def draw(choices: int, *what: object) -> int:
    """A number below `choices` that depends on `what` alone (not on any generator's state)."""
    digest = blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % choices


class Mixture:
    """Smooth weighted round robin as a closed form: which source, and which of its positions, stands at position n.

    Each slot of a period goes to the source that lags most behind its share. Any run of samples then holds the share of
    each source to within one sample for two sources, and to within two for any number.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        turns = whole_shares(weights, MAX_PERIOD)
        self.turns, self.period = turns, sum(turns)
        shares, taken = np.array(turns), np.zeros(len(turns), dtype=np.int64)
        self._source = np.empty(self.period, dtype=np.int16)
        self._place = np.empty(self.period, dtype=np.int32)
        lag = np.zeros(len(turns), dtype=np.int64)  # slots owed to each source, times the period
        for slot in range(self.period):
            lag += shares
            source = int(lag.argmax())
            lag[source] -= self.period
            self._source[slot], self._place[slot] = source, taken[source]
            taken[source] += 1

    def locate(self, position: int) -> tuple[int, int]:
        """(source, position in that source)."""
        rounds, slot = divmod(position, self.period)
        source = int(self._source[slot])
        return source, rounds * self.turns[source] + int(self._place[slot])


def whole_shares(weights: Sequence[Fraction], limit: int) -> list[int]:
    """Small whole numbers in the proportion of the weights: exact when they add up to `limit` or less, else rounded."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    exact = [int(weight * scale) for weight in weights]
    exact = [number // math.gcd(*exact) for number in exact]
    if sum(exact) <= limit:
        return exact
    return [max(1, round(Fraction(number * limit, sum(exact)))) for number in exact]


class Place(NamedTuple):
    """Where a source position leads: the epoch it belongs to, the shard, and the row in the shard."""

    epoch: int
    shard: int
    row: int


class Shuffle:
    """Shuffles a source without holding it: shards by epoch, then the rows of `window` neighbouring shards together."""

    def __init__(self, counts: Sequence[int], seed: Sequence[int], window: int) -> None:
        self.counts = np.array(counts, dtype=np.int64)
        self.seed, self.window = tuple(seed), window
        self.total = int(self.counts.sum())
        self._epoch: tuple[int, np.ndarray, list[int]] = (-1, self.counts, [])
        self._rows: tuple[int, int, np.ndarray, np.ndarray] = (-1, -1, self.counts, self.counts)

    def locate(self, position: int) -> Place:
        """The place of the picture at a position of the endless shuffled sequence."""
        epoch, offset = divmod(position, self.total)
        shards, starts = self._order(epoch)
        number = bisect_right(starts, offset) - 1
        order, ends = self._window_order(epoch, number, shards)
        row = int(order[offset - starts[number]])
        which = int(np.searchsorted(ends, row, side="right"))
        before = int(ends[which - 1]) if which else 0
        return Place(epoch, int(shards[number * self.window + which]), row - before)

    def window_of(self, position: int) -> tuple[int, int]:
        """The epoch and the window that a position lies in."""
        epoch, offset = divmod(position, self.total)
        return epoch, bisect_right(self._order(epoch)[1], offset) - 1

    def coming(self, position: int) -> list[int]:
        """The shards of the window of a position, then those of the next one."""
        epoch, number = self.window_of(position)
        shards = self._order(epoch)[0][number * self.window : (number + 2) * self.window].tolist()
        if (number + 1) * self.window >= len(self.counts):
            shards += self._order(epoch + 1)[0][: self.window].tolist()
        return shards

    def _order(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """The shards in this epoch's order and the position at which each window starts."""
        if self._epoch[0] != epoch:
            shards = np.random.default_rng([*self.seed, epoch]).permutation(len(self.counts))
            before = np.concatenate([[0], np.cumsum(self.counts[shards])])
            self._epoch = epoch, shards, before[:-1][:: self.window].tolist()
        return self._epoch[1], self._epoch[2]

    def _window_order(self, epoch: int, number: int, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a window in their shuffled order, and where each of its shards ends before shuffling."""
        if self._rows[:2] != (epoch, number):
            sizes = self.counts[shards[number * self.window : (number + 1) * self.window]]
            order = np.random.default_rng([*self.seed, epoch, number]).permutation(int(sizes.sum()))
            self._rows = epoch, number, order, np.cumsum(sizes)
        return self._rows[2], self._rows[3]
