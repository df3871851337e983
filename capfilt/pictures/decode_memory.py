"""Bounds the memory of the pictures that the threads of a process decode at the same time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Condition


def _return_free_memory() -> None:
    """Give freed memory back to the system: glibc keeps what a thread has freed for this thread."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class DecodeMemory:
    """An amount of memory, in bytes, that is shared by threads."""

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._changed = Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and reserve them for the block; a size above the total reserves all."""
        size = min(size, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self.used + size <= self.total)
            self.used += size
        try:
            yield
        finally:
            if size >= self.total // 8:
                _return_free_memory()
            with self._changed:
                self.used -= size
                self._changed.notify_all()
