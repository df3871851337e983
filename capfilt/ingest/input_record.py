"""Records a digest of each row of an input, by which a later run finds changes.

`DATA/.input-FINGERPRINT.npy` has a digest per row, of its URL, its texts, its further columns, and the size and time of
the file with its picture.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from blipcore.io.storage import AnyPath
from blipcore.io.writing import atomic_write

# Fields of a row that its digest covers.
FIELDS = ("url", "caption", "more", "more_columns", "checksum", "status", "column", "offset", "size")


class InputRecord:
    """The digests of the rows of one input."""

    def __init__(self, out: AnyPath, fingerprint: str) -> None:
        self.path = out / f".input-{fingerprint}.npy"
        self.matched = 0  # earlier rows found by `find_new`
        self.first_new: tuple[int, str] | None = None  # number, from 1, and URL of the first row that is not earlier
        self.digests = array("Q")  # of the rows read so far
        self._file: tuple[Any, Any] = (None, None)  # the last file with a picture, its size and time

    def read(self) -> np.ndarray | None:
        """Return the digests written by an earlier run, None if it wrote none."""
        try:
            return np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False)
        except FileNotFoundError:
            return None
        except ValueError:
            raise ValueError(f"{self.path} is damaged; delete it to run without a comparison of the input.") from None

    def write(self) -> None:
        """Write the digests of the rows read so far."""
        with atomic_write(self.path) as file:
            np.save(file, np.frombuffer(self.digests, np.uint64))

    def record(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows; write their digests after the last."""
        for row in rows:
            self.digests.append(self._digest(row))
            yield row
        self.write()

    def find_new(self, rows: Iterator[dict[str, Any]], earlier: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yield the rows that are not `earlier` ones; those are all found, in order, if `matched` is their number."""
        for number, row in enumerate(rows, 1):
            digest = self._digest(row)
            self.digests.append(digest)
            if self.matched < len(earlier) and digest == earlier[self.matched]:
                self.matched += 1
                continue
            if self.first_new is None:
                self.first_new = (number, str(row.get("url")))
            yield row

    def _digest(self, row: dict[str, Any]) -> int:
        # A missing cell is the same as no column: another row of a JSON list may have brought the column.
        columns = {name: cell for name, cell in (row.get("columns") or {}).items() if cell is not None}
        values = repr(([row.get(name) for name in FIELDS], columns, self._describe_file(row.get("body"))))
        return int.from_bytes(blake2b(values.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

    def _describe_file(self, path: bytes | None) -> tuple[int, int] | None:
        """Return size and time of a local file with pictures, None for any other."""
        if path is None or b"://" in path:
            return None
        if self._file[0] != path:
            try:
                status = os.stat(path)
                self._file = (path, (status.st_size, status.st_mtime_ns))
            except (OSError, ValueError):
                self._file = (path, None)
        return self._file[1]
