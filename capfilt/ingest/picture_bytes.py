"""Reads the bytes of pictures from files, parts of files, and tables."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, file_size, to_path
from capfilt.ingest.inputs.picture_names import PictureNames
from capfilt.ingest.inputs.table_pictures import TableColumns, open_columns

DIGESTS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}  # by the number of hex digits
SPARSE_MEMBER = "sparse member"  # in place of a column: a file of a tar that is stored without its holes


class MissingPictureError(Exception):
    """The bytes of a picture cannot be read; `outcome` is one of `shard_writer.OUTCOMES`."""

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def check_digest(data: bytes, expected: str) -> None:
    """Check the bytes of a picture as they were received against a hex digest, such as `9e10…` or `sha256:9e10…`.

    Raises MissingPictureError with the outcome "wrong_checksum" if they differ, or if `expected` is no digest.
    """
    digest = expected.strip().lower().rpartition(":")[2]
    name = DIGESTS.get(len(digest))
    if name is None or not set(digest) <= set("0123456789abcdef"):
        raise MissingPictureError("wrong_checksum", f"{expected[:160]!r} is no hex digest of md5, sha1, sha256, sha512")
    actual = hashlib.new(name, data, usedforsecurity=False).hexdigest()
    if actual != digest:
        raise MissingPictureError("wrong_checksum", f"the {name} is {actual}, the list has {digest}")


class PictureBytesReader:
    """Reads the bytes of pictures. The last file or table stays open, because rows come in order."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._path: str | None = None
        self._file: BinaryIO | None = None
        self._table: TableColumns | None = None

    def read(self, path: str, column: str | None, offset: int | None, size: int | None) -> bytes:
        """Return the bytes of a picture: cell `offset` of a table's column, a range of a file, or a whole file.

        For the column SPARSE_MEMBER, it is a sparse file of a tar with its header at `offset`.

        Raises MissingPictureError, FileNotFoundError or PermissionError.
        """
        if column == SPARSE_MEMBER:
            return self._read_sparse(path, offset or 0, size or 0)
        if column is not None:
            return self._read_cell(self._open_table(path, column).read(offset or 0)[0], path)
        if offset is None:
            return self._read_file(path)
        self._require_small(size or 0)
        file = self._open_file(path)
        file.seek(offset)
        return file.read(-1 if size is None else size)

    def _read_sparse(self, path: str, offset: int, size: int) -> bytes:
        """Return a file of a tar without its holes, with the header at `offset`, as a whole of `size` bytes."""
        self._require_small(size)
        with open_read(to_path(path)) as file:
            file.seek(offset)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    member = tar.next()
                    content = tar.extractfile(member) if member is not None else None
                    return b"" if content is None else content.read(size)
            except tarfile.TarError as error:
                raise MissingPictureError("decode_error", f"a damaged sparse file: {error}") from None

    def _read_file(self, path: str) -> bytes:
        if "://" in path:
            remote = to_path(path)
            self._require_small(file_size(remote))
            try:
                return remote.read_bytes()
            except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:  # a damaged member of an archive
                raise MissingPictureError("decode_error", f"cannot be unpacked: {error}") from None
        # Checked before it is opened: reading a pipe or a device would never end.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise MissingPictureError("other", "not a regular file")
        self._require_small(status.st_size)
        with open(path, "rb") as file:
            return file.read()

    def _open_file(self, path: str) -> BinaryIO:
        if self._file is None or self._path != path:
            self.close()
            self._file = open_read(to_path(path) if "://" in path else Path(path))
            self._path = path
        return self._file

    def _open_table(self, path: str, column: str) -> TableColumns:
        if self._table is None or self._path != f"{path}#{column}":
            self.close()
            self._table = open_columns(path, [column])
            self._path = f"{path}#{column}"
        return self._table

    def _read_cell(self, cell: Any, table: str) -> bytes:
        """Return the bytes of a cell: bytes, or Hugging Face's struct of bytes and path."""
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None and isinstance(cell, dict) and cell.get("path"):
            return self._read_named(str(cell["path"]), to_path(table).parent)
        if not isinstance(data, bytes):
            raise MissingPictureError("not_found", "no bytes in the row")
        self._require_small(len(data))
        return data

    def _read_named(self, name: str, folder: AnyPath) -> bytes:
        """Return the bytes of a file that a table in `folder` names, as `to_parquet` of `datasets` writes it."""
        names = PictureNames(folder)
        relative = names.relative(name)
        if relative is None:
            remedy = "give the folder of the pictures as SOURCE, and the table with --annotations"
            raise MissingPictureError(
                "forbidden", f"its bytes are not in the table, and {name[:200]} is outside of {folder}; {remedy}"
            )
        found = names.find(relative)
        if found is None:
            raise MissingPictureError("not_found", f"its bytes are not in the table: {name[:200]}")
        return self._read_file(str(names.root / found))

    def _require_small(self, size: int) -> None:
        if size > self.max_bytes:
            raise MissingPictureError("too_large", f"larger than {self.max_bytes} bytes: {size}")

    def close(self, keep_tables: bool = False) -> None:
        """Close the last file or table.

        With `keep_tables`, a table stays open for the next shard: a row group can only be read from its start.
        """
        if self._file is not None:
            self._file.close()
        elif self._table is not None and not keep_tables:
            self._table.close()
        else:
            return
        self._path = self._file = self._table = None
