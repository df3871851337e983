"""Threads wait until the memory that they need is free."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from capfilt.pictures import decode
from capfilt.pictures.decode_memory import DecodeMemory


def test_the_sum_of_all_reservations_stays_within_the_total() -> None:
    memory = DecodeMemory(100)
    seen: list[int] = []

    def use(size: int) -> None:
        with memory.reserve(size):
            seen.append(memory.used)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [30, 60, 99, 1, 1000, 50] * 20))
    assert max(seen) <= 100
    assert memory.used == 0


def test_a_large_picture_waits_for_the_others_and_they_wait_for_it() -> None:
    memory = DecodeMemory(100)
    held, release = Event(), Event()

    def use(size: int) -> int:
        with memory.reserve(size):
            held.set()
            assert release.wait(30)
            return memory.used

    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(use, 10**9)
        assert held.wait(30)
        small = pool.submit(use, 1)
        release.set()
        assert (large.result(), small.result()) == (100, 1)


def test_a_failure_frees_the_memory() -> None:
    memory = DecodeMemory(100)
    with pytest.raises(ZeroDivisionError), memory.reserve(50):
        _ = 1 / 0
    assert memory.used == 0


def test_a_picture_counts_until_it_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    from web import picture

    memory = DecodeMemory(10**6)
    monkeypatch.setattr(decode, "_memory", memory)
    used = decode.prepare_picture(picture(1), lambda image: (image.size, memory.used))
    assert used == ((32, 24), 32 * 24 * decode.BYTES_PER_PIXEL)
    assert memory.used == 0
