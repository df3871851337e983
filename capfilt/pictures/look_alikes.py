"""Finds pictures that look alike by the Hamming distance of their difference hashes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Of 64 bits: the hash of a smaller or recompressed copy differs in none or a few.
MAX_DIFFERENT_BITS = 3
# A hash with fewer bits set, or unset, is not distinctive: that of a sky or a blank page.
MIN_DISTINCTIVE_BITS = 6


class LookAlikes:
    """A set of pictures, by difference hash: `dhash in look_alikes` finds near copies too."""

    def __init__(self, hashes: Iterable[str]) -> None:
        numbers = parse_hashes(list(hashes))
        self.hashes = numbers[are_distinctive(numbers)]

    def __contains__(self, dhash: str) -> bool:
        number = parse_hashes([dhash])
        return bool(are_distinctive(number)[0] and (count_bits(self.hashes ^ number) <= MAX_DIFFERENT_BITS).any())


def parse_hashes(hexes: list[str]) -> np.ndarray:
    """Return unsigned 64-bit numbers for strings of 16 hex digits."""
    return np.frombuffer(bytes.fromhex("".join(hexes)), ">u8").astype(np.uint64)


def are_distinctive(hashes: np.ndarray) -> np.ndarray:
    """Return a mask of the hashes that are distinctive enough to compare."""
    bits = count_bits(hashes)
    return (bits >= MIN_DISTINCTIVE_BITS) & (bits <= 64 - MIN_DISTINCTIVE_BITS)


def count_bits(numbers: np.ndarray) -> np.ndarray:
    """Return the number of set bits of each 64-bit number."""
    n = numbers.copy()
    for shift, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        n = (n & np.uint64(mask)) + ((n >> np.uint64(shift)) & np.uint64(mask))
    return ((n * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
