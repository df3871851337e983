"""Near copies by the difference hash: a few bits may differ, and hashes of blank pictures are not compared."""

from __future__ import annotations

import numpy as np
import pytest
from soft_photos import encode, photo

from capfilt.pictures.decode import difference_hash
from capfilt.pictures.look_alikes import LookAlikes, are_distinctive, count_bits, parse_hashes

HASH = 0x0123456789ABCDEF


def test_look_alikes_are_copies_not_similar_pictures() -> None:
    alikes = LookAlikes(difference_hash(encode(photo(n), "JPEG", quality=95)) for n in range(40))
    assert len(alikes.hashes) > 30
    again = [difference_hash(encode(photo(n).resize((150, 110)), "JPEG", quality=40)) in alikes for n in range(40)]
    assert sum(again) >= len(alikes.hashes)
    assert not [n for n in range(100, 300) if difference_hash(encode(photo(n), "BMP")) in alikes]
    assert "0000000000000000" not in alikes and "ffffffffffffffff" not in LookAlikes(["ffffffffffffffff"])


@pytest.mark.parametrize(("flips", "is_copy"), [(0, True), (0b111, True), (1 << 63 | 0b11, True), (0b1111, False)])
def test_hashes_of_copies_differ_in_at_most_three_bits(flips: int, is_copy: bool) -> None:
    look_alikes = LookAlikes([f"{2**64 - 1 - HASH:016x}", f"{HASH:016x}"])
    assert (f"{HASH ^ flips:016x}" in look_alikes) == is_copy


def test_hashes_with_few_bits_set_or_unset_are_not_distinctive() -> None:
    numbers = [2**bits - 1 for bits in (0, 5, 6, 58, 59, 64)]
    assert are_distinctive(np.array(numbers, np.uint64)).tolist() == [False, False, True, True, False, False]
    hashes = [f"{number:016x}" for number in numbers]
    assert [dhash in LookAlikes(hashes) for dhash in hashes] == [False, False, True, True, False, False]


def test_no_picture_is_a_copy_of_an_empty_set() -> None:
    assert f"{HASH:016x}" not in LookAlikes([])


def test_hashes_are_64_bit_numbers() -> None:
    numbers = [0, 1, 0xFF, HASH, 2**64 - 1]
    assert parse_hashes([f"{number:016x}" for number in numbers]).tolist() == numbers
    assert count_bits(np.array(numbers, np.uint64)).tolist() == [0, 1, 8, 32, 64]
