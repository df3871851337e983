"""Reads csv, tsv and txt files: delimiter, header and quotes are found by rules, and a bad row costs one row.

How quotes are meant is decided for a file by its first lines with quotes. In a csv, cells may be quoted, unless more
rows are complete if quotes are part of the text. In a tsv, quotes are part of the text, as in CC12M, unless a CSV
writer would have written the same lines. Backslashes before quotes, as Spark and MySQL write them, are tried too.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa

from blipcore.io.samples import PICTURE_SUFFIXES
from capfilt.ingest.lists.list_files import (
    MAX_LINE_BYTES,
    SAMPLE_BYTES,
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

DELIMITERS = {"csv": ",\t;|", "tsv": "\t,;|", "txt": "\t"}  # the usual one first
DIALECTS: dict[str, dict[str, Any]] = {"double": {}, "backslash": {"doublequote": False, "escapechar": "\\"}}
QUOTING_NOTES = {
    "": "no quotes",
    "none": "quotes are part of the text",
    "double": "cells may be quoted",
    "backslash": "cells may be quoted, with backslashes before quotes",
}
STYLES = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)  # of CSV writers
_TOO_LONG = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
NULL = "\\N"  # a missing cell in dumps of MySQL, PostgreSQL and Hive
HEADER_LINES = 20  # that are compared to find the delimiter
SEPARATOR_LINE = re.compile('"?sep=(.)"?\r*')  # first line by which Excel is told the delimiter


class Record(NamedTuple):
    """The cells of one row, or the `error` why it has none. `lines` are its lines as they are."""

    number: int  # of the first line, from 1
    lines: list[str]
    cells: list[str]
    error: str | None = None


class DelimitedFile:
    """A csv, tsv or txt file. `names` are its columns: 1, 2, ... without a header."""

    byte_columns: frozenset[int] = frozenset()

    def __init__(self, path: str, file_format: str, options: ListOptions) -> None:
        self.path, self.options = path, options
        with name_damage(path, file_format), open_list_file(path) as file:
            content = Utf8File(file, options.encoding)
        self.encoding = content.encoding
        lines = [decode_line(line).rstrip("\r") for line in content.sample.split(line_end(content.sample))]
        lines = [line for line in lines if line.strip()]
        declared = SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
        lines = lines[declared is not None :]
        if not lines:
            raise ValueError(f"{path} is empty.")
        self.file_format, self.delimiter = (
            (file_format, declared[1]) if declared else _find_delimiter(lines, file_format)
        )
        if not self.delimiter:
            options.refuse(path, "a file with one value per line", "quoting")
        self.skip_spaces = self.delimiter not in ("", "\t") and f"{self.delimiter} " in lines[0]
        self.quoting: str = options.quoting
        self.width = 0
        first = next(self._records(), None) if self.delimiter else Record(1, [], ["1"])
        cells = [] if first is None else [cell.strip() for cell in first.cells]
        if not cells:
            raise ValueError(f"{path}, line 1 cannot be read: {first.error if first else 'it is empty'}.")
        self.has_header = not (
            options.no_header or options.columns or not self.delimiter or any(map(looks_like_picture, cells))
        )
        while self.has_header and cells and not cells[-1]:
            cells.pop()  # delimiters at the end of the header
        self.width = len(cells)
        numbers = [str(number + 1) for number in range(self.width)]
        if options.columns and len(options.columns) != self.width:
            raise ValueError(
                f"{path} has {self.width} columns, but --columns names {len(options.columns)}: "
                f"{', '.join(options.columns)}."
            )
        header = [cell or number for cell, number in zip(cells, numbers, strict=True)]  # pandas' index has no name
        self.names = list(options.columns) or (header if self.has_header else numbers)

    @property
    def schema(self) -> pa.Schema:
        """The columns, all of them texts."""
        return pa.schema([(name, pa.string()) for name in self.names])

    @property
    def description(self) -> str:
        """The format, for an account."""
        if not self.delimiter:
            return f"{self.file_format}, {self.encoding.upper()}, one value per line"
        delimiter = "" if self.delimiter == DELIMITERS[self.file_format][0] else f"delimiter '{self.delimiter}', "
        header = "header" if self.has_header else "no header"
        return f"{self.file_format}, {self.encoding.upper()}, {delimiter}{header}, {QUOTING_NOTES[self.quoting]}"

    def read(self, indices: Sequence[int | None]) -> Iterator[ListRow]:
        """Yield the cells at these columns row by row, None for a missing column."""
        for number, record in enumerate(self._records()):
            if number == 0 and self.has_header:
                continue
            where = f"{self.path}, line {record.number}"
            cells: Sequence[str | None] = record.cells
            error = record.error
            if len(cells) > self.width and not any(cells[self.width :]):
                cells = cells[: self.width]  # delimiters at the end of a line
            if error is None and len(cells) != self.width:
                first = "header" if self.has_header else "first row"
                error = f"the row has {len(cells)} cells, but the {first} {self.width}"
            if error is not None:
                yield ListRow((None,) * len(indices), f"{where}: {error}")
                continue
            invalid = [cell for cell in cells if cell is not None and has_invalid_bytes(cell)]
            if invalid:
                cells = [None if has_invalid_bytes(cell) else cell for cell in cells]
                error = f"{where}: {_describe_bytes(invalid[0])} is not {self.encoding.upper()}"
            yield ListRow(
                tuple(None if index is None or cells[index] == NULL else cells[index] for index in indices), error
            )

    def _records(self) -> Iterator[Record]:
        with name_damage(self.path, self.file_format), open_list_file(self.path) as file:
            content = Utf8File(file, self.options.encoding)
            lines = (None if line is None else decode_line(line) for line in read_lines(content))
            if not self.delimiter:
                for number, line in enumerate(lines, 1):
                    if line is None:
                        yield Record(number, [], [], _TOO_LONG)
                    elif line.strip():
                        yield Record(number, [], [line.strip()])
                return
            numbered = ((n, line) for n, line in enumerate(lines, 1) if n > 1 or not _is_separator_line(line))
            head: list[tuple[int, str | None]] = []
            if not self.quoting:
                for number, line in numbered:
                    head = [(number, line)]
                    if line is not None and '"' in line:
                        break
                    if line is None or line.strip():
                        yield from split_records(head, self.delimiter, "none", self.skip_spaces, self.width)
                    head = []
                head += _take_bytes(numbered, SAMPLE_BYTES)
                if head:
                    self.quoting = self._choose_quoting(head)
            if head or self.quoting:
                rows = chain(head, numbered)
                yield from split_records(rows, self.delimiter, self.quoting, self.skip_spaces, self.width)

    def _choose_quoting(self, lines: list[tuple[int, str | None]]) -> str:
        """Choose how the quotes in these lines, a part of the file, are meant."""
        records_of = {
            quoting: list(split_records(lines, self.delimiter, quoting, self.skip_spaces, self.width))
            for quoting in ("none", *DIALECTS)
        }
        cut = sum(len(line or "") for _, line in lines) >= SAMPLE_BYTES
        bad = {}
        for quoting, records in records_of.items():
            width = self.width or (len(records[0].cells) if records else 0)
            # The last record of a part may be cut.
            bad[quoting] = sum(
                record.error is not None or len(record.cells) != width for record in (records[:-1] if cut else records)
            )
        if bad["double"] == 0 and (self.delimiter != "\t" or self._is_written(records_of["double"])):
            return "double"
        escaped = any(line is not None and '\\"' in line for _, line in lines)
        if escaped and bad["backslash"] == 0 and bad["backslash"] < bad["double"]:
            return "backslash"
        return "none" if bad["none"] <= bad["double"] and (self.delimiter == "\t" or bad["double"]) else "double"

    def _is_written(self, records: list[Record]) -> bool:
        """Return whether a CSV writer, which quotes all cells or those that need it, would write these lines."""
        if not self.width and records and records[0].lines[0].startswith('"'):
            return True  # a quoted header
        return all(
            "\n".join(record.lines).rstrip("\r") in (_write(record.cells, self.delimiter, style) for style in STYLES)
            for record in records
            if record.error is None and any('"' in line for line in record.lines)
        )


def looks_like_picture(cell: object) -> bool:
    """Return whether a cell is a URL or the name of a picture file: a row with such a cell is no header."""
    if not isinstance(cell, str):
        return False
    value = cell.strip().strip('"').lower()
    if value.startswith(("http://", "https://", "ftp://", "s3://", "gs://", "//")):
        return True
    stem, dot, suffix = value.partition("#")[0].partition("?")[0].rpartition(".")
    return bool(stem and dot) and suffix in PICTURE_SUFFIXES


def split_records(
    lines: Iterable[tuple[int, str | None]], delimiter: str, quoting: str, skip_spaces: bool, width: int
) -> Iterator[Record]:
    """Split numbered lines into records. A quote that is never closed costs its first line.

    `width` is the number of cells in a row, 0 if unknown. With `skip_spaces`, spaces after delimiters are dropped.
    """
    ahead: deque[tuple[int, str | None]] = deque()
    source = iter(lines)
    csv.field_size_limit(2 * MAX_LINE_BYTES)
    while True:
        following = ahead.popleft() if ahead else next(source, None)
        if following is None:
            return
        number, line = following
        if line is None:
            yield Record(number, [], [], _TOO_LONG)
        elif not line.strip(" \r"):
            continue
        elif quoting == "none" or '"' not in line:
            cells = line.rstrip("\r").split(delimiter)
            yield Record(number, [line], [cell.strip(" ") for cell in cells] if skip_spaces else cells)
        else:
            taken = [following]
            reader = csv.reader(
                _take_lines(taken, ahead, source),
                delimiter=delimiter,
                skipinitialspace=skip_spaces,
                strict=True,
                **DIALECTS[quoting],
            )
            error = None
            try:
                cells = next(reader)
            except csv.Error as problem:
                cells, error = [], "a quote is not closed" if len(taken) > 1 else f"{problem}"
            texts = [text for _, text in taken if text is not None]
            if len(taken) > 1 and (error or _swallows_rows(texts, delimiter, width)):
                cells, error = [], "a quote is not closed"
                ahead.extendleft(reversed(taken[1:]))
            yield Record(number, texts[: None if error is None else 1], cells, error)


def _is_separator_line(line: str | None) -> bool:
    return line is not None and SEPARATOR_LINE.fullmatch(line) is not None


def _take_lines(
    taken: list[tuple[int, str | None]], ahead: deque[tuple[int, str | None]], source: Iterator[tuple[int, str | None]]
) -> Iterator[str]:
    """Yield the first line of `taken`, then further ones as the parser asks for them, which are added to `taken`."""
    size = 0
    while size <= MAX_LINE_BYTES:
        line = taken[-1][1]
        if line is None:
            return
        size += len(line)
        yield line + "\n"
        following = ahead.popleft() if ahead else next(source, None)
        if following is None:
            return
        taken.append(following)


def _swallows_rows(lines: list[str], delimiter: str, width: int) -> bool:
    """Return whether each line of a row is a row of its own: a quote is not closed, and ends in a later row.

    A writer doubles quotes, so lines with doubled quotes are one cell.
    """
    if any('""' in line for line in lines):
        return False
    rows = [line.split(delimiter) for line in lines]
    columns = [{(index, "://" in cell) for index, cell in enumerate(row) if looks_like_picture(cell)} for row in rows]
    return bool(columns[0]) and all(
        len(row) == (width or len(rows[0])) and places == columns[0] for row, places in zip(rows, columns, strict=True)
    )


def _find_delimiter(lines: list[str], file_format: str) -> tuple[str, str]:
    """Return the format and the delimiter by the first lines; "" for a txt with one value per line."""
    usual, *others = list(DELIMITERS[file_format])
    head = lines[:HEADER_LINES]
    if file_format == "txt":
        if all("\t" in line for line in head):
            return "tsv", "\t"
        if len(head) > 1 and not looks_like_picture(head[0]):
            for delimiter in DELIMITERS["csv"]:
                values = map(looks_like_picture, head[1].split(delimiter))
                if delimiter in head[0] and any(values) and not any(map(looks_like_picture, head[0].split(delimiter))):
                    return "csv", delimiter
        return "txt", ""
    joins = usual in lines[0] and _joins_cells(head, usual)
    if joins or usual not in lines[0]:
        for delimiter in sorted(others, key=lambda other: _joins_cells(head, other)):
            counts = [line.count(delimiter) for line in head if '"' not in line]
            # A few rows may lack a delimiter: a row of Flickr30k's results.csv does.
            agreed = len(set(counts)) < 2 or 2 * counts.count(lines[0].count(delimiter)) > len(counts)
            if delimiter in lines[0] and agreed and not (joins and _joins_cells(head, delimiter)):
                return file_format, delimiter
    return file_format, usual


def _joins_cells(lines: list[str], delimiter: str) -> bool:
    """Return whether half of the lines have a picture and more in one cell: another delimiter separates them."""
    joined = 0
    for line in lines:
        joined += any(_holds_more_than_a_picture(cell.strip().strip('"')) for cell in line.split(delimiter))
    return 2 * joined >= len(lines)


def _holds_more_than_a_picture(cell: str) -> bool:
    if "http://" in cell or "https://" in cell:
        return not cell.startswith("http") or len(cell.split()) > 1
    starts = (cell[:position] for position, character in enumerate(cell) if character in DELIMITERS["csv"])
    return any(start.rpartition(".")[2].lower() in PICTURE_SUFFIXES for start in starts)


def _take_bytes(lines: Iterator[tuple[int, str | None]], size: int) -> list[tuple[int, str | None]]:
    taken = []
    while size > 0:
        following = list(islice(lines, 1))
        if not following:
            break
        taken += following
        size -= len(following[0][1] or "")
    return taken


def _write(cells: list[str], delimiter: str, style: int) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="", quoting=style).writerow(cells)  # type: ignore[arg-type]
    return text.getvalue()


def _describe_bytes(text: str) -> str:
    """Return the first invalid byte of a cell, with the text around it."""
    position = next(index for index, character in enumerate(text) if "\udc80" <= character <= "\udcff")
    start = max(0, position - 10)
    around = text[start : position + 5].encode("utf-8", "surrogateescape")
    return f"the byte 0x{ord(text[position]) - 0xDC00:02x} in {around!r}"
