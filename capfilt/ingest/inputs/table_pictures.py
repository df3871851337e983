"""Tables with pictures: Parquet files with image bytes, and datasets saved by Hugging Face `datasets`.

A saved dataset is read with `datasets` itself, because a table of indices may select and reorder its rows.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.messages import one_line
from blipcore.io.reading import open_read
from blipcore.io.samples import PICTURE_SUFFIXES
from blipcore.io.storage import AnyPath, list_names, to_path
from capfilt.ingest.lists.arrow_list import PAGE_BY_PAGE, is_binary
from capfilt.ingest.lists.list_files import is_damage
from capfilt.ingest.lists.rows import ListColumn, match_columns

BYTES_COLUMNS = ("jpg", "image", "png", "webp", "jpeg", "img", "image_bytes", "bytes", "picture")
ROWS_PER_READ = 64  # few, because pictures are large
PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")


def is_saved_dataset(path: AnyPath) -> bool:
    """Return whether a folder was written by `save_to_disk` of Hugging Face `datasets`."""
    return path.is_dir() and not {"state.json", "dataset_dict.json"}.isdisjoint(list_names(path))


def find_image_column(schema: pa.Schema, name: str | None, path: str) -> str | None:
    """Return the column that holds the bytes of pictures, None if there is none.

    `name` is the column named by the user: ValueError if it is missing, None if it holds no bytes.
    """
    candidates = [field.name for field in schema if holds_bytes(field.type)]
    if name is not None:
        match_columns(schema.names, [ListColumn("a picture", (), name, "--image-col")], path)
        return name if name in candidates else None
    image_column = ListColumn("a picture", BYTES_COLUMNS, None, "--image-col", required=False)
    (usual,) = match_columns(candidates, [image_column], path)
    if usual is None:
        candidates = [name for name in candidates if _begins_with_picture(path, name)]
    if usual is None and len(candidates) > 1:
        raise ValueError(f"{path} has several columns of bytes; name one with --image-col: {', '.join(candidates)}.")
    found = usual or (candidates[0] if candidates else None)
    if found is None:
        lists = [field.name for field in schema if pa.types.is_list(field.type) and holds_bytes(field.type.value_type)]
        if lists:
            raise ValueError(
                f"{path} has lists of pictures in '{lists[0]}'. A row must hold one picture; write a row for each, as "
                "`explode` of pandas does."
            )
    return found


def holds_bytes(data_type: pa.DataType) -> bool:
    """Return whether a column may hold pictures: bytes, or Hugging Face's {bytes, path}."""
    if pa.types.is_struct(data_type):
        return "bytes" in [data_type.field(index).name for index in range(data_type.num_fields)]
    return is_binary(data_type)


def _begins_with_picture(path: str, name: str) -> bool:
    """Return whether the first cell with bytes in a column holds a picture."""
    with closing(open_columns(path, [name])) as columns:
        for (cell,) in islice(columns, ROWS_PER_READ):
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            if data:
                return is_picture_data(data)
            if isinstance(cell, dict) and cell.get("path"):
                return str(cell["path"]).rpartition(".")[2].lower() in PICTURE_SUFFIXES
    return False


def is_picture_data(data: bytes) -> bool:
    """Return whether bytes begin as a picture does."""
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"  # not a sound
    return is_webp or data.startswith(PICTURE_STARTS) or data[4:12] in (b"ftypheic", b"ftypavif", b"ftypmif1")


class TableColumns(ABC):
    """Cells of some columns by row number, read a few rows at a time; fast if rows are read in order."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self.path, self.names = path, list(names)
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self._next_row = -1  # of `_rows`; -1 if reading must start anew

    def read(self, row: int) -> tuple[Any, ...]:
        """Return the cells of a row."""
        if not 0 <= self._next_row <= row or self._can_skip_to(row):
            self._rows, self._next_row = self._read_from(row), row
        skipped = row - self._next_row
        self._next_row = -1  # if the next line raises, the iterator is spent
        cells = next(islice(self._rows, skipped, None), None)
        if cells is None:
            raise ValueError(f"{self.path} has no row {row}; the file has changed since it was listed.")
        self._next_row = row + 1
        return cells

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._read_from(0)

    @abstractmethod
    def _can_skip_to(self, row: int) -> bool:
        """Return whether a new start would skip rows that reading on would not."""

    @abstractmethod
    def _read_from(self, row: int) -> Iterator[tuple[Any, ...]]:
        """Yield the cells of each row from this one on."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class ParquetColumns(TableColumns):
    """Columns of a Parquet file."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        super().__init__(path, names)
        self._source = open_read(to_path(path))
        self._file = pq.ParquetFile(self._source, **PAGE_BY_PAGE)
        metadata = self._file.metadata
        self._group_starts = [0]
        for group in range(metadata.num_row_groups):
            self._group_starts.append(self._group_starts[-1] + metadata.row_group(group).num_rows)

    def _can_skip_to(self, row: int) -> bool:
        # A row group is read from its start.
        return self._group_starts[bisect_right(self._group_starts, row) - 1] > self._next_row

    def _read_from(self, row: int) -> Iterator[tuple[Any, ...]]:
        group = bisect_right(self._group_starts, row) - 1
        skip = row - self._group_starts[group]
        groups = list(range(group, len(self._group_starts) - 1))
        batches = self._file.iter_batches(ROWS_PER_READ, row_groups=groups, columns=self.names, use_threads=False)
        try:
            for batch in batches:
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                yield from zip(*(_cells(batch.column(name).slice(skip)) for name in self.names), strict=True)
                skip = 0
        except (pa.ArrowInvalid, OSError) as error:
            if not is_damage(error):
                raise
            raise ValueError(f"{self.path} cannot be read as Parquet ({one_line(error)[:200]}).") from None

    def close(self) -> None:
        self._file.close()
        self._source.close()


def _cells(column: pa.Array) -> list[Any]:
    """Return a column as Python values; bytes for a column of texts with one that is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


class DatasetColumns(TableColumns):
    """Columns of a saved Hugging Face dataset."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        super().__init__(path, names)
        self._data = load_dataset(path)

    def _can_skip_to(self, row: int) -> bool:
        return row - self._next_row > ROWS_PER_READ

    def _read_from(self, row: int) -> Iterator[tuple[Any, ...]]:
        for start in range(row, len(self._data), ROWS_PER_READ):
            table = self._data[start : start + ROWS_PER_READ]
            yield from zip(*(table[name].to_pylist() for name in self.names), strict=True)

    def close(self) -> None:
        """Do nothing: the Arrow files are memory-mapped and closed with the object."""


def load_dataset(path: str) -> Any:
    """Load a saved dataset as Arrow tables, pictures not decoded; ValueError if it has several splits or is damaged."""
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"{path} is a saved Hugging Face dataset; reading it needs: pip install 'capfilt[datasets]'"
        ) from None
    try:
        data = datasets.load_from_disk(path)
    except (pa.ArrowException, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path} is not a whole saved dataset ({one_line(error)[:200]}).") from None
    if isinstance(data, datasets.DatasetDict):
        raise ValueError(f"{path} holds the splits {', '.join(data)}; choose one with --split.")
    return data.with_format("arrow")


def dataset_splits(path: AnyPath) -> list[str]:
    """Return the splits of a saved `DatasetDict`, empty for a single dataset."""
    file = path / "dataset_dict.json"
    if not file.exists():
        return []
    try:
        splits = json.loads(file.read_text())["splits"]
        return [str(split) for split in splits]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} does not list the splits of a dataset.") from None


def open_columns(path: str, names: Sequence[str]) -> TableColumns:
    """Open columns of a saved dataset, which is a folder, or of a Parquet file."""
    return DatasetColumns(path, names) if to_path(path).is_dir() else ParquetColumns(path, names)
