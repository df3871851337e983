"""Pictures inside tables: Parquet files with image bytes, saved Hugging Face datasets. Columns found, cells by row.

The only file that imports `datasets`, which a saved dataset needs (its rows may be chosen by an index beside them).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, list_names, to_path
from capfilt.ingest.lists import PAGE_BY_PAGE, ListColumn, match_columns, is_damage

IMAGE_COLUMNS = ("jpg", "image", "png", "webp", "jpeg", "img", "image_bytes", "bytes", "picture")
ROWS_PER_READ = 64  # read at a time: pictures are large


def is_saved_dataset(path: AnyPath) -> bool:
    """Whether a folder was written by `save_to_disk` of Hugging Face `datasets`."""
    return path.is_dir() and not {"state.json", "dataset_dict.json"}.isdisjoint(list_names(path))


def find_image_column(schema: pa.Schema, given: str | None, path: str) -> str | None:
    """The column that holds pictures as bytes, None where no column does; ValueError when the one given does not."""
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    if given is not None:
        (name,) = match_columns(schema.names, [ListColumn("a picture", (), given, "--image-col")], path)
        return name if name in holding else None
    (usual,) = match_columns(
        holding, [ListColumn("a picture", IMAGE_COLUMNS, None, "--image-col", required=False)], path
    )
    if usual is None and len(holding) > 1:
        raise ValueError(f"{path} has several columns of bytes; name one with --image-col: {', '.join(holding)}.")
    return usual or (holding[0] if holding else None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face: {bytes, path}
        return "bytes" in [kind.field(place).name for place in range(kind.num_fields)]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class TableColumns(ABC):
    """The cells of some columns by row, read a few rows at a time; fast where rows are asked for in order."""

    def __init__(self, path: str, names: Sequence[str]):
        self.path, self.names = path, list(names)
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self._next = -1

    def read(self, row: int) -> tuple[Any, ...]:
        """The cells of a row."""
        if not 0 <= self._next <= row or self._is_nearer(row):
            self._rows, self._next = self._read_from(row), row
        at, self._next = self._next, -1  # where reading fails there is nothing to go on from
        for cells in islice(self._rows, row - at, None):
            self._next = row + 1
            return cells
        raise ValueError(f"{self.path} has no row {row}; it is not the file that was listed.")

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._read_from(0)

    @abstractmethod
    def _is_nearer(self, row: int) -> bool:
        """Whether reading may begin after the row that would come next, and so nearer to this one."""

    @abstractmethod
    def _read_from(self, row: int) -> Iterator[tuple[Any, ...]]:
        """The cells of this row and of those that follow."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


class ParquetColumns(TableColumns):
    """Columns of a Parquet file."""

    def __init__(self, path: str, names: Sequence[str]):
        super().__init__(path, names)
        self._source = open_read(to_path(path))
        self._file = pq.ParquetFile(self._source, **PAGE_BY_PAGE)
        meta = self._file.metadata
        self._starts = [0]
        for group in range(meta.num_row_groups):
            self._starts.append(self._starts[-1] + meta.row_group(group).num_rows)

    def _is_nearer(self, row: int) -> bool:
        return self._starts[bisect_right(self._starts, row) - 1] > self._next  # a row group is read from its start

    def _read_from(self, row: int) -> Iterator[tuple[Any, ...]]:
        group = bisect_right(self._starts, row) - 1
        skip = row - self._starts[group]
        groups = list(range(group, len(self._starts) - 1))
        try:
            for batch in self._file.iter_batches(
                ROWS_PER_READ, row_groups=groups, columns=self.names, use_threads=False
            ):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                yield from zip(*(batch.column(name).slice(skip).to_pylist() for name in self.names), strict=True)
                skip = 0
        except (pa.ArrowInvalid, OSError) as error:
            if not is_damage(error):
                raise
            raise ValueError(f"{self.path} cannot be read as Parquet ({' '.join(str(error).split())[:200]}).") from None

    def close(self) -> None:
        self._file.close()
        self._source.close()


class DatasetColumns(TableColumns):
    """Columns of a saved Hugging Face dataset."""

    def __init__(self, path: str, names: Sequence[str]):
        super().__init__(path, names)
        self._data = load_dataset(path)

    def _is_nearer(self, row: int) -> bool:
        return row - self._next > ROWS_PER_READ

    def _read_from(self, row: int) -> Iterator[tuple[Any, ...]]:
        for start in range(row, len(self._data), ROWS_PER_READ):
            table = self._data[start : start + ROWS_PER_READ]
            yield from zip(*(table[name].to_pylist() for name in self.names), strict=True)

    def close(self) -> None:
        """Its Arrow files are mapped, and go with the object."""


def load_dataset(path: str) -> Any:
    """A saved dataset as its own Arrow tables, pictures not decoded; ValueError names the splits where it has some."""
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"{path} is a saved Hugging Face dataset; reading it needs: pip install 'capfilt[datasets]'"
        ) from None
    data = datasets.load_from_disk(path)
    if isinstance(data, datasets.DatasetDict):
        raise ValueError(
            f"{path} holds the splits {', '.join(data)}; give one of them, such as {path}/{next(iter(data))}."
        )
    return data.with_format("arrow")


def open_columns(path: str, names: Sequence[str]) -> TableColumns:
    """Columns of whatever kind of table lies at `path`."""
    return (DatasetColumns if to_path(path).is_dir() else ParquetColumns)(path, names)
