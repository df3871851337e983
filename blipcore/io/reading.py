"""Reads files by ranges, on local disks and behind fsspec URLs."""

from __future__ import annotations

import io
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from blipcore.io.storage import AHEAD, BLOCK, AnyPath, Remote, file_size
from blipcore.io.writing import _told_where


def open_read(path: AnyPath) -> BinaryIO:
    """A file to read from and to seek in."""
    return open(path, "rb") if isinstance(path, Path) else _Ranges(path)  # type: ignore[return-value]


def read_tail(path: AnyPath, size: int = 64 << 10) -> bytes:
    """The last `size` bytes of a file, or all of a smaller one."""
    if isinstance(path, Remote):
        return path._ask(lambda fs, inner: fs.cat_file(inner, start=-size))
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


class _Ranges(io.RawIOBase):
    """A remote file, fetched in blocks: each once, a few ahead of the reader, kept in a temporary file.

    A tar is walked first and read then, so without the file every byte would come twice.
    """

    def __init__(self, remote: Remote):
        self.remote = remote
        self.end = file_size(remote)
        self.position = 0
        self._blocks: dict[int, Future[None]] = {}
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="fetch")
        self._spool = tempfile.TemporaryFile(prefix="capfilt-")  # noqa: SIM115  (closed with this)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.end}[whence]
        return self.position

    def readall(self) -> bytes:
        return self.read(-1)

    def read(self, size: int | None = -1) -> bytes:
        start = min(self.position, self.end)
        stop = self.end if size is None or size < 0 else min(start + size, self.end)
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            for coming in range(block, block + 1 + AHEAD):
                if coming not in self._blocks and coming * BLOCK < self.end:
                    self._blocks[coming] = self._pool.submit(self._fetch, coming)
            self._blocks[block].result()
        self.position = stop
        return os.pread(self._spool.fileno(), stop - start, start)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fetch(self, block: int) -> None:
        start, stop = block * BLOCK, min((block + 1) * BLOCK, self.end)

        def fetch(fs: Any, path: str) -> bytes:
            data = fs.cat_file(path, start=start, end=stop)
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes came for {stop - start}")
            return data

        data = memoryview(self.remote._ask(fetch))
        with _told_where(tempfile.gettempdir()):
            while data:
                written = os.pwrite(self._spool.fileno(), data, stop - len(data))
                data = data[written:]

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(cancel_futures=True)
            self._spool.close()
        super().close()
