"""Finds pictures that look alike by the Hamming distance of their difference hashes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

NEAR = 3  # bits of 64: a picture made smaller or compressed anew differs in none or a few


FLAT = 6  # fewer bits set, or unset, than this: a sky or a blank page, of which the hash says little


class LookAlikes:
    """Pictures, by their difference hashes, that others are compared with: `dhash in alikes`."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self.hashes = _numbers(list(hashes))
        self.hashes = self.hashes[_telling(self.hashes)]

    def __contains__(self, dhash: str) -> bool:
        one = _numbers([dhash])
        return bool(_telling(one)[0] and (_bits(self.hashes ^ one) <= NEAR).any())


def _numbers(hexes: list[str]) -> np.ndarray:
    """Unsigned 64-bit numbers of runs of 16 hex digits."""
    return np.frombuffer(bytes.fromhex("".join(hexes)), ">u8").astype(np.uint64)


def _telling(hashes: np.ndarray) -> np.ndarray:
    """Which hashes say enough of their picture to compare it by."""
    told = _bits(hashes)
    return (told >= FLAT) & (told <= 64 - FLAT)


def _bits(numbers: np.ndarray) -> np.ndarray:
    """How many bits are set in each of these 64-bit numbers."""
    n = numbers.copy()
    for shift, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        n = (n & np.uint64(mask)) + ((n >> np.uint64(shift)) & np.uint64(mask))
    return ((n * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
