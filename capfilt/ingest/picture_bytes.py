"""Reads the bytes of pictures from where an ingest plan found them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from blipcore.io.reading import open_read
from blipcore.io.storage import file_size, to_path
from capfilt.ingest.table_pictures import TableColumns, open_columns


class MissingPictureError(Exception):
    """The bytes of a picture cannot be had; `outcome` is one of OUTCOMES."""

    def __init__(self, outcome: str, message: str):
        super().__init__(message)
        self.outcome = outcome


class PictureReader:
    """Reads the bytes of pictures; keeps what it has read from last, for rows come in order.

    A table stays open for the next shard: a row group, which may be all of it, can be read from its start alone.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.path: str | None = None
        self.open: BinaryIO | TableColumns | None = None

    def read(self, path: str, column: str | None, offset: int | None, size: int | None) -> bytes:
        """NoBodyError, FileNotFoundError or PermissionError when there is nothing to read."""
        if column is not None:
            return self._checked(self._table(path, column).read(offset or 0)[0])
        if offset is None:
            return self._whole(path)
        self._require_small(size or 0)
        if self.path != path:
            self._keep(path, open_read(to_path(path) if "://" in path else Path(path)))
        self.open.seek(offset)
        return self.open.read(size)

    def _whole(self, path: str) -> bytes:
        if "://" in path:
            remote = to_path(path)
            self._require_small(file_size(remote))
            return remote.read_bytes()
        # not before it is known to be a file of some size: a pipe or a device would never end
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise MissingPictureError("other", "not a regular file")
        self._require_small(about.st_size)
        with open(path, "rb") as file:
            return file.read()

    def _table(self, path: str, column: str) -> TableColumns:
        if self.path != f"{path}#{column}":
            self._keep(f"{path}#{column}", open_columns(path, [column]))
        return self.open

    def _checked(self, value: Any) -> bytes:
        """The bytes of a cell: bytes as they are, or Hugging Face's struct of bytes and path."""
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and value.get("path"):
            raise MissingPictureError("not_found", f"its bytes are not in the table: {str(value['path'])[:200]}")
        if not isinstance(data, bytes):
            raise MissingPictureError("not_found", "no bytes in the row")
        self._require_small(len(data))
        return data

    def _require_small(self, size: int) -> None:
        if size > self.max_bytes:
            raise MissingPictureError("too_large", f"larger than {self.max_bytes} bytes: {size}")

    def _keep(self, path: str, opened: BinaryIO | TableColumns) -> None:
        self.close()
        self.path, self.open = path, opened

    def close(self, but_tables: bool = False) -> None:
        """Let go of what was read from last."""
        if self.open is None or (but_tables and isinstance(self.open, TableColumns)):
            return
        self.open.close()
        self.path = self.open = None
