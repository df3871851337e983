"""Reads files at any offset, local or remote."""

from __future__ import annotations

import io
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from blipcore.io.storage import AnyPath, Remote, file_size, name_full_disk

RANGE_BYTES = 8 << 20  # per request: enough for full throughput, cheap to repeat
RANGES_AHEAD = 4  # requested beyond the one that is read


def open_read(path: AnyPath) -> BinaryIO:
    """Open a seekable file for reading."""
    return open(path, "rb") if isinstance(path, Path) else RemoteFile(path)  # type: ignore[return-value]


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return `size` bytes at `offset` of a file from `open_read`.

    Does not use the file's position, which threads and forked processes share.
    """
    if isinstance(file, RemoteFile):
        return file.read_at(offset, size)
    return os.pread(file.fileno(), size, offset)


def read_head(path: AnyPath, size: int) -> bytes:
    """Return the first `size` bytes of a file, or all of a smaller one."""
    if isinstance(path, Remote):
        return path.request(lambda fs, inner: fs.cat_file(inner, start=0, end=size))
    with open(path, "rb") as file:
        return file.read(size)


def read_tail(path: AnyPath, size: int = 64 << 10) -> bytes:
    """Return the last `size` bytes of a file, or all of a smaller one."""
    if isinstance(path, Remote):
        return path.request(lambda fs, inner: fs.cat_file(inner, start=-size))
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


class RemoteFile(io.RawIOBase):
    """A remote file, fetched in ranges, each once and some ahead of the reader.

    A temporary file keeps them: a tar is read twice, first its headers, then its members.
    """

    def __init__(self, remote: Remote):
        self.remote = remote
        self.end = file_size(remote)
        self.position = 0
        self._ranges: dict[int, Future[None]] = {}
        self._pool = ThreadPoolExecutor(RANGES_AHEAD, thread_name_prefix="fetch")
        self._spool = tempfile.TemporaryFile(prefix="capfilt-")  # noqa: SIM115  (closed by `close`)

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
        data = self.read_at(self.position, self.end if size is None or size < 0 else size)
        self.position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        start = min(offset, self.end)
        stop = min(start + size, self.end)
        for number in range(start // RANGE_BYTES, -(-stop // RANGE_BYTES)):
            for ahead in range(number, number + 1 + RANGES_AHEAD):
                if ahead not in self._ranges and ahead * RANGE_BYTES < self.end:
                    self._ranges[ahead] = self._pool.submit(self._fetch, ahead)
            self._ranges[number].result()
        return os.pread(self._spool.fileno(), stop - start, start)

    def _fetch(self, number: int) -> None:
        start, stop = number * RANGE_BYTES, min((number + 1) * RANGE_BYTES, self.end)

        def fetch(fs: Any, path: str) -> bytes:
            data = fs.cat_file(path, start=start, end=stop)
            if len(data) != stop - start:
                raise OSError(f"{len(data)} of {stop - start} bytes were received")
            return data

        data = memoryview(self.remote.request(fetch))
        with name_full_disk(tempfile.gettempdir()):
            while data:
                written = os.pwrite(self._spool.fileno(), data, stop - len(data))
                data = data[written:]

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(cancel_futures=True)
            self._spool.close()
        super().close()
