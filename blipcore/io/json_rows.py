"""Rows of a JSON list or of JSON lines, read one at a time in the memory of one row and a megabyte.

Reading can start at the `RowStart` of any row: the lists released with BLIP have tens of millions of rows in one file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import BinaryIO, NamedTuple

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath

CHUNK_BYTES = 1 << 20  # read at a time
MAX_ROW_CHARACTERS = 1 << 22  # a longer row is damage, such as a quote that is never closed
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
SPACE = re.compile(r"[ \t\r\n]*")
DECODE = json.JSONDecoder().raw_decode


class RowStart(NamedTuple):
    """The start of a row: its number, from 0, and its byte offset in the file."""

    number: int = 0
    offset: int = 0


FIRST_ROW = RowStart()


def read_json_rows(path: Path, start: RowStart = FIRST_ROW) -> Iterator[tuple[RowStart, object]]:
    """Yield the rows of a file from `start`, which an earlier call has yielded, to the end.

    The suffix of `path` decides between a list and JSON lines. Raises FileNotFoundError, or ValueError with file and
    row if the content is no list, no JSON or cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No annotation file at {path}.")
    with path.open("rb") as file:
        yield from parse_json_rows(file, str(path), path.suffix.lower() in JSON_LINES_SUFFIXES, start)


def parse_json_rows(
    file: BinaryIO, name: str, lines: bool = False, start: RowStart = FIRST_ROW, errors: str = "strict"
) -> Iterator[tuple[RowStart, object]]:
    """Yield the rows of an open file: a JSON list, or JSON lines. Messages call the file `name`.

    `errors` is that of `JsonWindow`.
    """
    text = JsonWindow(file, start.offset, name, errors)
    if start == FIRST_ROW and not lines and not text.skip("["):
        raise ValueError(f"{name} must hold a list of rows, but begins with {text.preview()!r}.")
    number = text.row = start.number
    end = "" if lines else "]"
    while (following := text.peek()) != end:
        if number > start.number and not lines and not text.skip(","):
            raise ValueError(f"{name}, row {number}: {'no comma before it' if following else 'the file ends here'}.")
        text.peek()
        row_start = RowStart(number, text.offset)
        yield row_start, text.parse()
        number += 1
        text.row = number
    text.skip("]")
    if text.peek():
        raise ValueError(f"{name} continues after the end of its list: {text.preview()!r}.")


def first_character(path: AnyPath) -> str:
    """Return the first character that is not white space; "" in an empty file."""
    if not path.is_file():
        raise FileNotFoundError(f"No annotation file at {path}.")
    with open_read(path) as file:
        return JsonWindow(file, 0, str(path)).peek()


class JsonWindow:
    """A window that moves over a UTF-8 file; `at` is the index of the next character in `window`.

    With `errors` "surrogateescape", bytes that are not UTF-8 become surrogates instead of an error.
    """

    def __init__(self, file: BinaryIO, offset: int, name: str, errors: str = "strict") -> None:
        if offset:
            file.seek(offset)
        self.file, self.name, self.row, self.errors = file, name, 0, errors
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self.window, self.at = "", 0
        # The byte offset of the character at index `_counted`.
        self._offset, self._counted = offset, 0
        if offset == 0 and self.peek() == "\ufeff":  # a byte order mark
            self.at += 1

    @property
    def offset(self) -> int:
        """Byte offset of the next character."""
        self._offset += len(self.window[self._counted : self.at].encode("utf-8", self.errors))
        self._counted = self.at
        return self._offset

    def peek(self) -> str:
        """Skip white space and return the character after it, "" at the end of the file."""
        while True:
            space = SPACE.match(self.window, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.window) or not self._read_on():
                return self.window[self.at : self.at + 1]

    def skip(self, character: str) -> bool:
        """Skip `character` if it is next, and return whether it was."""
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def parse(self) -> object:
        """Parse the next value."""
        while True:
            try:
                value, end = DECODE(self.window, self.at)
                if end == len(self.window) and type(value) in (int, float) and self._read_on():
                    continue  # a number may continue beyond the window
                self.at = end
                return value
            except JSONDecodeError as error:
                # The value may continue beyond the window.
                if len(self.window) - self.at <= MAX_ROW_CHARACTERS and self._read_on():
                    continue
                raise ValueError(
                    f"{self.name}, row {self.row} is not valid JSON, or cut short: {error.msg} at "
                    f"{self.window[error.pos : error.pos + 20]!r}."
                ) from None
            except RecursionError:
                raise ValueError(f"{self.name}, row {self.row} is nested too deeply.") from None

    def preview(self) -> str:
        """Return the next characters, for a message."""
        self.peek()
        return self.window[self.at : self.at + 20]

    def _read_on(self) -> bool:
        """Drop the text before `at` and append more; return False at the end of the file.

        The rest of the window at least doubles, so a long row is parsed few times.
        """
        self._offset, self._counted = self.offset, 0
        rest = self.window[self.at :]
        content = self.file.read(max(CHUNK_BYTES, len(rest)))
        try:
            self.window, self.at = rest + self.decoder.decode(content, final=not content), 0
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name}, row {self.row} or one of the next is not UTF-8: {error.reason}.") from None
        return bool(content)
