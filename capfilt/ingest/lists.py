"""Reads columns of list files: the URL lists of `download` and the annotations of `pack`.

The formats are txt (one value per line), csv, tsv, json, jsonl (each also with .gz) and Parquet, from a path or an
fsspec URL. Only a small part of the file is in memory at a time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.json_rows import parse_json_rows

FORMATS = ("txt", "csv", "tsv", "json", "jsonl", "parquet")
BLOCK_BYTES = 1 << 22  # read at a time
MAX_CELL = 1 << 22  # characters of a CSV cell; a longer one has a quote that is never closed
PARQUET_ROWS = 10_000  # read at a time
# Options of ParquetFile that read a page at a time instead of a row group, which may be the whole file.
PAGE_BY_PAGE = {"pre_buffer": False, "buffer_size": 1 << 20}
JSON_ROWS_FOR_NAMES = 1_000  # objects of a JSON list from which its columns are taken


class ListColumn(NamedTuple):
    """A column to look for by the user's name for it, or by its usual names in any case."""

    content: str  # for messages: "a URL"
    usual_names: tuple[str, ...]  # the most common first
    name: str | None  # given by the user
    option: str  # the option for `name`
    required: bool = True


def list_format(path: str) -> str | None:
    """Return the format by the suffix of a path, None if it is not in `FORMATS`."""
    suffix = path.removesuffix(".gz").rpartition(".")[2].lower()
    return suffix if suffix in FORMATS else None


def read_columns(path: str, columns: Sequence[ListColumn]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of these columns row by row, None for a column that is missing.

    Raises FileNotFoundError or ValueError; for an error in a later row, when it is reached.
    """
    file_format = list_format(path)
    if "://" not in path and not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"No file at {path}.")
    if file_format is None:
        raise ValueError(f"{path} has an unknown format; its name must end in .{', .'.join(FORMATS)} or one with .gz.")
    rows = _read(path, file_format, columns)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} has no rows.")
    return chain([first], rows)


def file_fingerprint(path: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()[:16]


def as_text(value: object) -> str | None:
    """Return a cell as text, JSON for anything but a string; None stays None, bytes raise ValueError."""
    if value is None:
        return None
    if isinstance(value, bytes):
        raise ValueError("The URL and caption columns must hold text, not bytes.")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON may hold half of a surrogate pair


def _read(path: str, file_format: str, columns: Sequence[ListColumn]) -> Iterator[tuple[Any, ...]]:
    reader = {"txt": _read_txt, "parquet": _read_parquet, "json": _read_json, "jsonl": _read_json}
    try:
        yield from reader.get(file_format, _read_csv)(path, columns)
    except (pa.ArrowInvalid, OSError, zlib.error, EOFError, UnicodeDecodeError) as error:
        if not is_damage(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read as {file_format}: {reason}") from None


def is_damage(error: Exception) -> bool:
    """Return whether a reader's error is about the content of a file, not about access to it."""
    return not isinstance(error, OSError) or (error.errno is None and not isinstance(error, FileNotFoundError))


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    import fsspec

    with fsspec.open(path, "rb", compression="gzip" if path.endswith(".gz") else None) as file:
        yield file


# ---------------------------------------------------------------------------------------------------- formats


def _read_txt(path: str, columns: Sequence[ListColumn]) -> Iterator[tuple[Any, ...]]:
    missing = (None,) * (len(columns) - 1)
    with _open(path) as file:
        for line in file:
            value = line.removeprefix(BOM_UTF8).decode("utf-8", errors="replace").strip()
            if value:
                yield value, *missing


def _read_csv(path: str, columns: Sequence[ListColumn]) -> Iterator[tuple[Any, ...]]:
    delimiter = "\t" if list_format(path) == "tsv" else ","
    with _open(path) as file, TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = _csv_rows(text, delimiter, path)
        _, _, header = next(rows, (1, [], []))
        if not header:
            raise ValueError(f"{path} is empty.")
        names = match_columns(header, columns, path)
        indices = [None if name is None else header.index(name) for name in names]
        for line, lines, cells in rows:
            if len(lines) > 1:
                _require_closed_quotes(lines, delimiter, f"{path}, line {line}")
            if len(cells) != len(header):
                raise ValueError(f"{path}, line {line}: the row has {len(cells)} cells, but the header {len(header)}.")
            yield tuple(None if index is None else cells[index] for index in indices)


def _csv_rows(text: TextIOWrapper, delimiter: str, path: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield the number of the first line, the lines and the cells of each row. The list of lines is reused."""
    lines: list[str] = []

    def read_lines() -> Iterator[str]:
        for line in text:
            lines.append(line)
            yield line

    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(read_lines(), delimiter=delimiter)
    try:
        for cells in reader:
            if cells:  # not an empty line
                yield reader.line_num - len(lines) + 1, lines, cells
            lines.clear()
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num - len(lines) + 1}: {error}; is a quote not closed?") from None


def _require_closed_quotes(lines: list[str], delimiter: str, where: str) -> None:
    """Raise ValueError unless each quote in a row of several lines is closed at the end of a cell.

    Otherwise the reader would take all lines up to the next quote as one cell.
    """
    try:
        for _ in csv.reader(lines, delimiter=delimiter, strict=True):
            pass
    except csv.Error:
        raise ValueError(f"{where}: a quote is not closed; remove such quotes, or use JSON lines or Parquet.") from None


def _read_parquet(path: str, columns: Sequence[ListColumn]) -> Iterator[tuple[Any, ...]]:
    with _open(path) as file, pq.ParquetFile(file, **PAGE_BY_PAGE) as parquet:
        names = match_columns(parquet.schema_arrow.names, columns, path)
        # No other columns: they may be large.
        existing = list(dict.fromkeys(filter(None, names)))
        for batch in parquet.iter_batches(PARQUET_ROWS, columns=existing, use_threads=False):
            missing = [None] * batch.num_rows
            cells = (missing if name is None else batch.column(name).to_pylist() for name in names)
            yield from zip(*cells, strict=True)


def _read_json(path: str, columns: Sequence[ListColumn]) -> Iterator[tuple[Any, ...]]:
    """Yield the objects of a list or of lines; strings are values of the first column."""
    with _open(path) as file:
        rows = (row for _, row in parse_json_rows(file, path, lines=list_format(path) == "jsonl"))
        head = list(islice(rows, JSON_ROWS_FOR_NAMES))
        if head and all(isinstance(row, str) for row in head):
            missing = (None,) * (len(columns) - 1)
            for row in chain(head, rows):
                yield _require_type(row, str, path), *missing
        elif head:
            names = match_columns(_names_of(head, path), columns, path)
            for row in chain(head, rows):
                values = _require_type(row, dict, path)
                yield tuple(None if name is None else values.get(name) for name in names)


def _names_of(rows: list[object], path: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in _require_type(row, dict, path)))


def _require_type(row: object, expected: type, path: str) -> Any:
    if not isinstance(row, expected):
        raise ValueError(f"{path} must be a list of objects, one per row.")
    return row


# ---------------------------------------------------------------------------------------------------- columns


def match_columns(names: Sequence[str], columns: Sequence[ListColumn], path: str) -> list[str | None]:
    """Return each column's name in the file, or None; ValueError if a required or a named column is missing."""
    matches: list[str | None] = []
    for column in columns:
        if column.name is not None and column.name not in names:
            raise ValueError(f"{path} has no column '{column.name}' ({column.option}); it has {', '.join(names)}.")
        match = column.name or _usual_column(names, column.usual_names)
        if match is None and column.required:
            problem = f"{path} has no column that looks like {column.content}; it has {', '.join(names)}."
            raise ValueError(f"{problem} Name the column with {column.option}.")
        matches.append(match)
    return matches


def _usual_column(names: Sequence[str], usual_names: tuple[str, ...]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual_names if name in lower), None)
