"""Reads columns of Parquet and Arrow files (Feather, Hugging Face `datasets`), a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.ingest.lists.list_files import ListOptions, ListRow, name_damage, open_list_file

ROWS = 10_000  # read at a time
ROWS_TO_TRY = 10  # of a binary column, which show whether it holds texts
# Options of ParquetFile that read a page at a time instead of a row group, which may be the whole file.
PAGE_BY_PAGE = {"pre_buffer": False, "buffer_size": 1 << 20}


class ArrowFile:
    """A Parquet or Arrow file."""

    has_header = True

    def __init__(self, path: str, file_format: str, options: ListOptions) -> None:
        options.refuse(path, f"a {file_format} file", "no_header", "quoting", "encoding")
        self.path, self.file_format = path, file_format
        with self._open([]) as (schema, _):
            self.schema = schema
        self.byte_columns = self._find_byte_columns()
        self.names = list(options.columns) or self.schema.names
        if len(self.names) != len(self.schema):
            raise ValueError(f"{path} has {len(self.schema)} columns, but --columns names {len(self.names)}.")

    @property
    def description(self) -> str:
        """The format, for an account."""
        return self.file_format

    def read(self, indices: Sequence[int | None]) -> Iterator[ListRow]:
        """Yield the cells at these columns row by row, None for a missing column."""
        existing = sorted({index for index in indices if index is not None})
        positions = [None if index is None else existing.index(index) for index in indices]
        row = 0
        with self._open(existing) as (_, batches):
            for batch in batches:
                missing = [None] * batch.num_rows
                problems: dict[int, str] = {}
                columns = [
                    self._values(batch.column(position), self.names[index], problems)
                    for position, index in enumerate(existing)
                ]
                cells = [missing if position is None else columns[position] for position in positions]
                rows = zip(*cells, strict=True) if cells else iter([()] * batch.num_rows)
                for number, values in enumerate(rows):
                    error = f"{self.path}, row {row + number}: {problems[number]}" if number in problems else None
                    yield ListRow(values, error)
                row += batch.num_rows

    def _find_byte_columns(self) -> set[int]:
        """Return the indices of binary columns that hold no text, such as pictures."""
        binary = [index for index, field in enumerate(self.schema) if is_binary(field.type)]
        if not binary:
            return set()
        with self._open(binary, ROWS_TO_TRY) as (_, batches):
            batch = next(batches, None)
        problems = [dict[int, str]() for _ in binary]
        if batch is not None:
            for column, of_column in zip(batch.slice(0, ROWS_TO_TRY).columns, problems, strict=True):
                self._values(column, "", of_column)
        return {index for index, of_column in zip(binary, problems, strict=True) if of_column}

    def _values(self, column: pa.Array, name: str, problems: dict[int, str]) -> list[Any]:
        """Return a column as Python values. Binary cells are texts; those that are not UTF-8 become `problems`."""
        if isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        if not is_binary(column.type):
            try:
                return column.to_pylist()
            except UnicodeDecodeError:
                if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                    raise ValueError(f"{self.path}: the column '{name}' holds bytes that are not UTF-8.") from None
                column = column.cast(pa.large_binary())
        values: list[Any] = column.to_pylist()
        for number, value in enumerate(values):
            try:
                values[number] = None if value is None else value.decode()
            except UnicodeDecodeError as error:
                values[number] = None
                problems[number] = f"'{name}' is not UTF-8 (byte 0x{value[error.start]:02x} at {error.start})"
        return values

    @contextmanager
    def _open(self, indices: list[int], rows: int = ROWS) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        """Open the file; yield its schema and batches of these columns, of at most `rows` rows in Parquet."""
        with name_damage(self.path, self.file_format), open_list_file(self.path) as file:
            if self.file_format == "parquet":
                with pq.ParquetFile(file, **PAGE_BY_PAGE) as parquet:
                    yield parquet.schema_arrow, _parquet_batches(parquet, indices, rows)
                return
            options = pa.ipc.IpcReadOptions(included_fields=indices or None)
            start = file.read(6)
            file.seek(0)
            if start == b"ARROW1":
                with pa.ipc.open_file(file, options=options) as reader:
                    batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                    yield reader.schema, _small_batches(batches)
            elif start[:4] == b"FEA1":
                raise ValueError(f"{self.path} is Feather version 1; write it as version 2 or Parquet.")
            else:
                with pa.ipc.open_stream(file, options=options) as reader:
                    yield reader.schema, _small_batches(iter(reader))


def _parquet_batches(parquet: pq.ParquetFile, indices: list[int], rows: int) -> Iterator[pa.RecordBatch]:
    names = [parquet.schema_arrow.names[index] for index in indices]
    for batch in parquet.iter_batches(rows, columns=names, use_threads=False):
        # Of columns with the same name, all are read.
        yield batch.select([batch.schema.get_all_field_indices(name)[0] for name in names])


def is_binary(data_type: pa.DataType) -> bool:
    """Return whether cells of a type are bytes."""
    types = pa.types
    return types.is_binary(data_type) or types.is_large_binary(data_type) or types.is_binary_view(data_type)


def _small_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for column in batch.columns:
            # A damaged file may have offsets outside of its data. Strings as bytes: they need not be valid UTF-8.
            types = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
            column.cast(types.get(column.type, column.type)).validate(full=True)
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)
