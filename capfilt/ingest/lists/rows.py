"""Lists: the rows of one or several files of any format, and the columns in them.

`download` reads lists of URLs, `pack` reads lists of the paths of pictures. A list is a file, a folder of parts or a
pattern. The formats are in `list_files.FORMATS`, each also with .gz, .bz2, .xz or .zst. Only a small part of a file is
in memory at a time, and a row that cannot be read costs no other row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from blipcore.io.list_cells import parse_list
from blipcore.io.storage import to_path
from capfilt.ingest.lists.arrow_list import ArrowFile
from capfilt.ingest.lists.delimited import DelimitedFile
from capfilt.ingest.lists.json_list import JsonFile
from capfilt.ingest.lists.list_files import (
    FORMATS,
    LFS_POINTER,
    ListOptions,
    ListRow,
    choose_files,
    find_list_files,
    has_invalid_bytes,
    list_format,
)

# first bytes -> suffix
SIGNATURES = {
    b"\x1f\x8b\x08": "gz",
    b"BZh91AY&SY": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"PK\x03\x04": "zip or .xlsx",
}
SAMPLE_ROWS = 100  # from which columns are found where names do not help
ListFile = ArrowFile | DelimitedFile | JsonFile


class ListColumn(NamedTuple):
    """A column to look for: by the user's name for it, by its usual names in any case, or by its cells."""

    content: str  # for messages: "a URL"
    usual_names: tuple[str, ...]  # the most common first
    name: str | None  # given by the user
    option: str  # the option for `name`
    required: bool = True
    fits: Callable[[object], bool] | None = None  # whether a cell may be in this column


class RowList:
    """The rows of a list. Columns are those of its first file."""

    def __init__(self, path: str, options: ListOptions) -> None:
        self.path, self.options = path, options
        self.files, self.splits = choose_files(find_list_files(path, options.format), options, path)
        self.first = self._open(self.files[0])
        self.names: list[str] = self.first.names
        self.has_header: bool = self.first.has_header
        unreadable = next((name for name in self.names if name.encode(errors="replace").decode() != name), None)
        if unreadable is not None:
            raise ValueError(f"{path} has the column name {unreadable!r}, which is no valid text.{self._hint()}")

    def _open(self, file: str) -> ListFile:
        file_format = self.options.format or list_format(file)
        if file_format is None:
            if file.lower().endswith(".zip"):
                raise ValueError(f"{file} is an archive; give a list in it, such as zip://NAME.csv::{file}.")
            suffixes = ", .".join(FORMATS)
            raise ValueError(f"{file} has an unknown format; its name must end in .{suffixes}, or one with .gz.")
        kind = FORMATS[file_format]
        _require_content(file, kind)
        if kind in ("json", "jsonl"):
            return JsonFile(file, kind, self.options)
        return (ArrowFile if kind in ("parquet", "arrow") else DelimitedFile)(file, kind, self.options)

    @property
    def schema(self) -> pa.Schema:
        """The columns with their types; texts in formats without types."""
        return self.first.schema

    @property
    def format(self) -> str:
        """The format in words, for an account."""
        return self.first.description

    @cached_property
    def sample(self) -> list[ListRow]:
        """The first rows, with all columns but those of bytes, which are None."""
        indices = [None if index in self.first.byte_columns else index for index in range(len(self.names))]
        return list(islice(self.first.read(indices), SAMPLE_ROWS))

    @property
    def text_format(self) -> bool:
        """True if the format has no types, so that each cell is a text."""
        return isinstance(self.first, DelimitedFile)

    @property
    def byte_columns(self) -> set[str]:
        """The columns that hold bytes other than text, such as pictures."""
        return {self.names[index] for index in self.first.byte_columns}

    def read(self, names: Sequence[str | None]) -> Iterator[ListRow]:
        """Yield the cells of these columns row by row, None for a missing column.

        A row that cannot be read has an `error`. Raises ValueError if a file has other columns, or no row can be read.
        """
        readable = rows = 0
        error = None
        for number, file in enumerate(self.files):
            part = self.first if number == 0 else self._open(file)
            indices = [None if name is None else _index(part.names, name, file) for name in names]
            for row in part.read(indices):
                rows += 1
                readable += row.error is None
                error = error or row.error
                yield row
        if not rows:
            raise ValueError(f"{self.path} has no rows.")
        if not readable:
            hint = ""
            if error and "is not UTF-8" in error:
                hint = self._hint()
            elif getattr(self.first, "delimiter", "") == ",":
                hint = " Put texts with commas in double quotes, or write a .tsv."
            raise ValueError(f"{self.path} has no row that can be read. {error}.{hint}")

    def _hint(self) -> str:
        if getattr(self.first, "encoding", "") == "utf-8" and not self.options.encoding:
            return " If it has another encoding, give --encoding, such as cp1252."
        return ""

    def add_late_name(self, name: str) -> None:
        """Add a column of JSON rows that the first rows do not have, if there are further rows."""
        if isinstance(self.first, JsonFile) and not self.first.has_all_rows and name not in self.names:
            self.names.append(name)

    @property
    def late_names(self) -> list[str]:
        """Names of JSON rows that are no columns, because the first rows do not have them."""
        return list(self.first.late_names) if isinstance(self.first, JsonFile) else []

    def sample_of(self, name: str) -> list[Any]:
        """Return the cells of a column in the first rows, without missing ones."""
        index = self.names.index(name)
        cells = (row.cells[index] for row in self.sample if index < len(row.cells))
        return [cell for cell in cells if cell not in (None, "")]


def open_list(path: str, options: ListOptions | None = None) -> RowList:
    """Open a list; FileNotFoundError or ValueError if there is none."""
    return RowList(path, options or ListOptions())


def find_columns(rows: RowList, columns: Sequence[ListColumn]) -> list[str | None]:
    """Return each column's name in a list, or None; ValueError if a required or a named column is missing.

    If no name matches, the only column that fits is taken, and a text without a `fits` is the only other column.
    """
    matches: list[str | None] = []
    for column in columns:
        if column.fits is not None:  # of several usual names, the first whose cells fit
            fitting = [name for name in column.usual_names if _fits(rows, column.fits, name)]
            column = column._replace(usual_names=(*fitting, *column.usual_names))
        required = column._replace(required=False)
        (match,) = match_columns(rows.names, [required], rows.path)
        if match is None and column.fits is not None:
            match = _fitting_column(rows, column, [name for name in matches if name])
        if match is None and column.required:
            match_columns(rows.names, [column], rows.path)  # raises
        matches.append(match)
    return matches


def _fits(rows: RowList, fits: Callable[[object], bool], usual_name: str) -> bool:
    name = _usual_column(rows.names, (usual_name,))
    return name is not None and any(map(fits, rows.sample_of(name)))


def _require_content(file: str, kind: str) -> None:
    """Raise ValueError if a local file begins as one of another format than its suffix says."""
    path = to_path(file)
    if not isinstance(path, Path) or not path.is_file():
        return
    with path.open("rb") as content:
        start = content.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(f"{file} is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder.")
    found = next((name for mark, name in SIGNATURES.items() if start.startswith(mark)), kind)
    if found != kind and not file.lower().endswith(f".{found}"):
        raise ValueError(f"{file} has the content of a .{found} file; give it this suffix, or unpack it.")


def _fitting_column(rows: RowList, column: ListColumn, taken: list[str]) -> str | None:
    fitting = []
    for name in rows.names:
        cells = rows.sample_of(name) if name not in taken else []
        if cells and column.fits is not None and sum(map(column.fits, cells)) >= len(cells) / 2:
            fitting.append(name)
    if len(fitting) > 1 and column.required:
        names = ", ".join(f"'{name}'" for name in fitting)
        problem = f"{rows.path} has several columns that look like {column.content}: {names}."
        raise ValueError(f"{problem} Name one with {column.option}.")
    return fitting[0] if len(fitting) == 1 else None


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
        if match is not None:
            _index(names, match, path)
        matches.append(match)
    return matches


def _usual_column(names: Sequence[str], usual_names: tuple[str, ...]) -> str | None:
    lower = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(names)}
    return next((lower[name] for name in usual_names if name in lower), None)


def _index(names: Sequence[str], name: str, path: str) -> int:
    """Return the index of a column; ValueError if it is missing or not the only one of its name."""
    if name not in names:
        raise ValueError(f"{path} has no column '{name}'; it has {', '.join(names)}.")
    if names.count(name) > 1:
        remedy = ", or give names for all columns with --columns" if list_format(path) in ("parquet", "arrow") else ""
        raise ValueError(f"{path} has {names.count(name)} columns of the name '{name}'. Rename one of them{remedy}.")
    return names.index(name)


# ---------------------------------------------------------------------------------------------------- cells


def as_text(value: object) -> str | None:
    """Return a cell as text, JSON for anything but a string; None and NaN become None, bytes raise ValueError."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        raise ValueError("The URL and caption columns must hold text, not bytes.")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON may hold half of a surrogate pair


def cell_texts(value: Any) -> list[str | None]:
    """Return the texts of a cell: one, a list of them, or a list of objects with one each."""
    value = parse_list(value)
    if isinstance(value, list):
        return [text for item in value for text in cell_texts(item)]
    if isinstance(value, tuple):  # of a map, as pyarrow gives it
        return [None]
    if isinstance(value, dict):
        return cell_texts(next((value[name] for name in ("raw", "caption", "text") if name in value), None))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return [None] if has_invalid_bytes(value) else [as_text(value)]
