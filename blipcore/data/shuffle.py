"""Order of training samples: mixed data sets and shuffled rows, as pure functions of the position."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

MAX_PERIOD = 1 << 16  # slots of the mixing schedule, so shares are exact to 1/65536


def hash_index(count: int, *key: object) -> int:
    """Return an index below `count` that depends on `key` alone, not on the state of a random generator."""
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


class Mixture:
    """Mixes data sets in the proportion of `weights` by smooth weighted round robin.

    The schedule is a period of slots, each given to the data set that lags most behind its share. Among any consecutive
    samples, a data set is within one sample of its share for two data sets, within two for more.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        self.slots = integer_shares(weights, MAX_PERIOD)  # slots per period of each data set
        self.period = sum(self.slots)
        self._dataset = np.empty(self.period, dtype=np.int16)  # data set of each slot
        self._offset = np.empty(self.period, dtype=np.int32)  # earlier slots of the same data set in the period
        shares = np.array(self.slots)
        used = np.zeros(len(shares), dtype=np.int64)
        lag = np.zeros(len(shares), dtype=np.int64)  # slots owed to each data set, times the period
        for slot in range(self.period):
            lag += shares
            dataset = int(lag.argmax())
            lag[dataset] -= self.period
            self._dataset[slot], self._offset[slot] = dataset, used[dataset]
            used[dataset] += 1

    def locate(self, position: int) -> tuple[int, int]:
        """Return the index of the data set at a position of the stream, and the position in that data set."""
        period, slot = divmod(position, self.period)
        dataset = int(self._dataset[slot])
        return dataset, period * self.slots[dataset] + int(self._offset[slot])


def integer_shares(weights: Sequence[Fraction], limit: int) -> list[int]:
    """Return integers in the proportion of `weights`: exact if they can sum to `limit` or less, else rounded."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    exact = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*exact)
    exact = [number // divisor for number in exact]
    if sum(exact) <= limit:
        return exact
    return [max(1, round(Fraction(number * limit, sum(exact)))) for number in exact]


class RowPosition(NamedTuple):
    """One visit of a row of a data set."""

    epoch: int
    shard: int
    row: int  # in the shard


class Shuffle:
    """Shuffles a data set of shards with `counts` rows, epoch after epoch.

    Each epoch shuffles the shards, then the rows of every `window` neighbouring shards together. Memory holds the order
    of the shards and of one window.
    """

    def __init__(self, counts: Sequence[int], seed: Sequence[int], window: int) -> None:
        self.counts = np.array(counts, dtype=np.int64)
        self.seed, self.window = tuple(seed), window
        self.total = int(self.counts.sum())
        # The orders last used: (epoch, shards, window starts) and (epoch, window, rows, shard ends).
        self._shard_order: tuple[int, np.ndarray, list[int]] = (-1, self.counts, [])
        self._row_order: tuple[int, int, np.ndarray, np.ndarray] = (-1, -1, self.counts, self.counts)

    def locate(self, position: int) -> RowPosition:
        """Return the row at a position of the endless shuffled sequence."""
        epoch, offset = divmod(position, self.total)
        shards, starts = self._shards(epoch)
        window = bisect_right(starts, offset) - 1
        rows, ends = self._rows(epoch, window, shards)
        row_in_window = int(rows[offset - starts[window]])
        shard_in_window = int(np.searchsorted(ends, row_in_window, side="right"))
        start = int(ends[shard_in_window - 1]) if shard_in_window else 0
        return RowPosition(epoch, int(shards[window * self.window + shard_in_window]), row_in_window - start)

    def window_at(self, position: int) -> tuple[int, int]:
        """Return the epoch and the number of the window that a position is in."""
        epoch, offset = divmod(position, self.total)
        return epoch, bisect_right(self._shards(epoch)[1], offset) - 1

    def upcoming_shards(self, position: int) -> list[int]:
        """Return the shards of the window at a position, then those of the next window."""
        epoch, window = self.window_at(position)
        shards: list[int] = self._shards(epoch)[0][window * self.window : (window + 2) * self.window].tolist()
        if (window + 1) * self.window >= len(self.counts):
            shards += self._shards(epoch + 1)[0][: self.window].tolist()
        return shards

    def _shards(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """Return the shards in the order of an epoch, and the offset in the epoch at which each window starts."""
        if self._shard_order[0] != epoch:
            shards = np.random.default_rng([*self.seed, epoch]).permutation(len(self.counts))
            starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
            self._shard_order = epoch, shards, starts[:-1][:: self.window].tolist()
        return self._shard_order[1], self._shard_order[2]

    def _rows(self, epoch: int, window: int, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shuffled rows of a window, and the unshuffled row at which each of its shards ends."""
        if self._row_order[:2] != (epoch, window):
            counts = self.counts[shards[window * self.window : (window + 1) * self.window]]
            rows = np.random.default_rng([*self.seed, epoch, window]).permutation(int(counts.sum()))
            self._row_order = epoch, window, rows, np.cumsum(counts)
        return self._row_order[2], self._row_order[3]
