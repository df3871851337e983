"""Reads the rows of JSON files in any usual layout, a few at a time.

A list or lines of objects, of lists or of strings; an object with one list of objects, such as the "annotations" of
RedCaps; an object of columns, as of SBU and pandas; an object of objects by key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from blipcore.io.json_rows import JsonWindow, parse_json_rows
from capfilt.ingest.lists.list_files import (
    MAX_LINE_BYTES,
    ListOptions,
    ListRow,
    Utf8File,
    decode_line,
    has_invalid_bytes,
    line_end,
    name_damage,
    open_list_file,
    read_lines,
)

ROWS_FOR_NAMES = 1_000  # objects from which the columns are taken
MAX_SECTIONS = 1_000  # more members of an object are rows by key


@dataclass
class Section:
    """A list or object in the outermost object of a file: its `offset` in bytes, and its first value."""

    name: str
    kind: str  # "[" or "{"
    offset: int
    first: object = None
    first_key: str = ""
    count: int = 0


class JsonFile:
    """A JSON file. `names` are the columns of its first rows."""

    has_header = True
    encoding = ""
    byte_columns: frozenset[int] = frozenset()

    def __init__(self, path: str, file_format: str, options: ListOptions) -> None:
        options.refuse(path, "a JSON file", "quoting")
        self.path, self.file_format, self.options = path, file_format, options
        self.sections: list[Section] = []
        with self._open() as content:
            self.encoding = content.encoding
            self.layout = self._find_layout(content)
        if self.layout == "object":
            self.layout = self._find_sections()
        found = list(islice(self._rows(), ROWS_FOR_NAMES))
        head = [row for _, row, error in found if error is None]
        if not head:
            problem = f"{path}, line {found[0][0]}: {found[0][2]}." if found else f"{path} has no rows."
            raise ValueError(problem)
        first = next((row for row in head if isinstance(row, (dict, list, str))), None)
        if first is None:
            raise ValueError(f"{path} must be a list of objects, one per row.")
        self.row_type = type(first)
        # Rows after the first may have further names, which are collected while they are read.
        self.has_all_rows = len(found) < ROWS_FOR_NAMES
        self.late_names: dict[str, None] = {}
        self.names = self._find_names([row for row in head if isinstance(row, self.row_type)])

    @property
    def schema(self) -> pa.Schema:
        """The columns as texts: JSON values have types of their own."""
        return pa.schema([(name, pa.string()) for name in self.names])

    @property
    def description(self) -> str:
        """The format, for an account."""
        layouts = {"lines": "one row per line", "list": "a list of rows", "values": "rows one after another"}
        layout = layouts.get(self.layout, self.layout)
        encoding = "" if self.encoding == "utf-8" else f"{self.encoding.upper()}, "
        return f"{self.file_format}, {encoding}{layout}"

    def read(self, indices: Sequence[int | None]) -> Iterator[ListRow]:
        """Yield the cells at these columns row by row, None for a missing one."""
        names = [None if index is None else self.names[index] for index in indices]
        known = set(self.names)
        unit = "line" if self.layout == "lines" else "row"
        for number, row, error in self._rows():
            cells: tuple[Any, ...]
            if error is None and not isinstance(row, self.row_type):
                error = f"the row is not {'an object' if self.row_type is dict else f'a {self.row_type.__name__}'}"
            if error is not None:
                yield ListRow((None,) * len(names), f"{self.path}, {unit} {number}: {error}")
                continue
            if isinstance(row, dict):
                if not self.has_all_rows:
                    self.late_names.update(dict.fromkeys(name for name in row if name not in known))
                cells = tuple(None if name is None else row.get(name) for name in names)
            else:
                values = [row] if isinstance(row, str) else row
                cells = tuple(
                    None if index is None or index >= len(values) else values[index]  # type: ignore[arg-type,index]
                    for index in indices
                )
            if any(map(has_invalid_bytes, cells)):
                cells = tuple(None if has_invalid_bytes(cell) else cell for cell in cells)
                error = f"{self.path}, {unit} {number}: a text is not {(self.encoding or 'utf-8').upper()}"
            yield ListRow(cells, error)

    # -------------------------------------------------------------------------------------------------- layouts

    @contextmanager
    def _open(self) -> Iterator[Utf8File]:
        with name_damage(self.path, self.file_format), open_list_file(self.path) as file:
            yield Utf8File(file, self.options.encoding)

    def _find_layout(self, content: Utf8File) -> str:
        """Return lines, list, values (objects one after another) or object."""
        sample = content.sample
        lines = [line.strip() for line in sample.split(line_end(sample)) if line.strip()]
        if not lines:
            raise ValueError(f"{self.path} has no rows.")
        first, following = lines[0], lines[1:2]
        if self.file_format == "jsonl":
            value = None if following else _parse_line(first)[0]
            if first == b"[" or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
                return "list"
            return "values" if first == b"{" else "lines"
        if first.startswith(b"{") and not (first.endswith(b"}") and following and following[0].startswith(b"{")):
            return "object"
        return "lines" if following and first[:1] + first[-1:] in (b"{}", b"[]", b'""') else "list"

    def _find_sections(self) -> str:
        """Find the lists and objects in the outermost object, and return how they hold the rows."""
        with self._open() as content:
            window = self._window(content, 0)
            plain = self._walk_object(window)
            if window.peek() == "{":
                return "values"
        lists = [section for section in self.sections if section.kind == "["]
        tables = [section for section in lists if isinstance(section.first, dict)]
        objects = [section for section in self.sections if section.kind == "{" and section.count]
        if len(tables) == 1:
            self.sections = tables
            return f"the rows of '{tables[0].name}'"
        if len(tables) > 1:
            names = ", ".join(f"'{section.name}'" for section in tables)
            raise ValueError(f"{self.path} holds several lists of rows ({names}); save one of them in its own file.")
        columns = [section for section in lists if section.count and not isinstance(section.first, list)]
        if columns and not plain:
            if len({section.count for section in columns}) > 1:
                lengths = ", ".join(f"'{section.name}' {section.count:,}" for section in columns)
                raise ValueError(f"{self.path} holds lists of different lengths ({lengths}), which are no columns.")
            self.sections = columns
            return "an object of columns"
        if objects and not plain and not lists:
            shapes = {(section.count, section.first_key) for section in objects}
            if len(shapes) == 1 and len(objects) < MAX_SECTIONS and objects[0].first_key.isdecimal():
                self.sections = objects
                return "an object of columns"
            return "an object of rows by key"
        return "values"  # a single row

    def _walk_object(self, window: JsonWindow) -> int:
        """Collect the sections of an object; return the number of its other members."""
        plain = 0
        window.skip("{")
        while window.peek() not in ("}", ""):
            name = window.parse()
            self._require(window, ":")
            kind = window.peek()
            if kind not in ("[", "{") or (kind == "{" and len(self.sections) >= MAX_SECTIONS):
                window.parse()
                plain += kind not in ("[", "{")
            else:
                section = Section(str(name), kind, window.offset)
                for key, value in _members(window):
                    if section.count == 0:
                        section.first, section.first_key = value, key
                    section.count += 1
                self.sections.append(section)
            if not window.skip(","):
                break
        self._require(window, "}")
        return plain

    def _require(self, window: JsonWindow, character: str) -> None:
        if not window.skip(character):
            raise ValueError(f"{self.path} is not valid JSON, or cut short: no {character!r} at {window.preview()!r}.")

    def _window(self, content: Utf8File, offset: int) -> JsonWindow:
        return JsonWindow(content, offset, self.path, "surrogateescape")  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------------ rows

    def _rows(self) -> Iterator[tuple[int, object, str | None]]:
        """Yield the number of each line from 1 or row from 0, its value, and the reason if it cannot be read."""
        with self._open() as content:
            if self.layout == "lines":
                for number, line in enumerate(read_lines(content), 1):
                    if line is None or line.strip():
                        yield number, *_parse_line(line)
            else:
                yield from ((number, value, None) for number, value in enumerate(self._values(content)))

    def _values(self, content: Utf8File) -> Iterator[object]:
        if self.layout in ("list", "values"):
            file: Any = content
            lines = self.layout == "values"
            return (row for _, row in parse_json_rows(file, self.path, lines, errors="surrogateescape"))
        if self.layout == "an object of columns":
            return self._zip_columns()
        offset = 0 if self.layout == "an object of rows by key" else self.sections[0].offset
        return (value for _, value in _members(self._window(content, offset)))

    def _zip_columns(self) -> Iterator[object]:
        with ExitStack() as files:
            columns = [
                _members(self._window(files.enter_context(self._open()), section.offset)) for section in self.sections
            ]
            for values in zip(*columns, strict=True):
                yield {section.name: value for section, (_, value) in zip(self.sections, values, strict=True)}

    def _find_names(self, rows: list[Any]) -> list[str]:
        if self.row_type is dict:
            self.options.refuse(self.path, "rows with names", "columns", "no_header")
            return list(dict.fromkeys(name for row in rows for name in row))
        if self.row_type is str:
            self.has_header = False
            self.options.refuse(self.path, "a list of texts", "columns")
            return ["1"]
        width = max(map(len, rows))
        if self.options.columns and len(self.options.columns) != width:
            raise ValueError(f"{self.path} has {width} columns, but --columns names {len(self.options.columns)}.")
        self.has_header = bool(self.options.columns)
        return list(self.options.columns) or [str(number + 1) for number in range(width)]


def _parse_line(line: bytes | None) -> tuple[object, str | None]:
    if line is None:
        return None, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        return json.loads(decode_line(line)), None
    except RecursionError:
        return None, "the row is nested too deeply"
    except ValueError as error:
        return None, f"not valid JSON ({error})"


def _members(window: JsonWindow) -> Iterator[tuple[str, object]]:
    """Yield the values of a list or an object with their keys, "" in a list."""
    kind = window.peek()
    end = {"[": "]", "{": "}"}[kind]
    window.skip(kind)
    while window.peek() not in (end, ""):
        key = ""
        if kind == "{":
            key = str(window.parse())
            window.skip(":")
        window.peek()
        yield key, window.parse()
        window.row += 1
        if not window.skip(","):
            break
    if not window.skip(end):
        raise ValueError(f"{window.name}, row {window.row}: no comma before it, or the file ends here.")
