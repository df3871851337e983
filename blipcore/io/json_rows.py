"""Rows of a JSON file of any size, one at a time, in the memory of one row and a megabyte.

In: a `.json` file that holds a list, or `.jsonl` with a value a line. Out: `(place, row)` pairs, where a place is the
row's number from 0 and its byte, from which reading can start again without what lies before. The released lists of
BLIP have tens of millions of rows in one file.
"""

import codecs
import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import BinaryIO, NamedTuple

CHUNK = 1 << 20  # bytes read at a time
LONGEST_ROW = 1 << 26  # characters; a row that does not end within them is damaged
LINES = (".jsonl", ".ndjson")
SPACE = re.compile(r"[ \t\r\n]*")
DECODE = json.JSONDecoder().raw_decode


class Place(NamedTuple):
    """Where a row begins: its number, counted from 0, and its byte in the file."""

    number: int = 0
    offset: int = 0


BEGIN = Place()


def read_rows(path: Path, start: Place = BEGIN) -> Iterator[tuple[Place, object]]:
    """The rows of a file from `start` (a place that this function gave) to its end.

    FileNotFoundError for no such file; ValueError with file and row for what is no list, no JSON or cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    lines, number = path.suffix.lower() in LINES, start.number
    with path.open("rb") as file:
        text = _Text(file, start.offset, path)
        if start == BEGIN and not lines and not text.take("["):
            raise ValueError(f"annotation file {path} must hold a list of rows: it begins with {text.glance()!r}")
        text.row = number
        while (ahead := text.peek()) != ("" if lines else "]"):
            if number > start.number and not lines and not text.take(","):
                raise ValueError(f"{path}, row {number}: {'the file ends here' if not ahead else 'no comma before it'}")
            text.peek()
            place = Place(number, text.offset)
            yield place, text.value()
            number += 1
            text.row = number
        text.take("]")
        if text.peek():
            raise ValueError(f"annotation file {path} goes on after the end of its list: {text.glance()!r}")


def first_character(path: Path) -> str:
    """The first character that is no white space: "[" for a list, "{" for an object, "" for an empty file."""
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    with path.open("rb") as file:
        return _Text(file, 0, path).peek()


class _Text:
    """A window on a UTF-8 file, `at` which the next character stands."""

    def __init__(self, file: BinaryIO, offset: int, path: Path) -> None:
        file.seek(offset)
        self.file, self.path, self.row = file, path, 0
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.window, self.at = "", 0
        self._offset, self._counted = offset, 0  # byte of the character at `_counted`
        if offset == 0 and self.peek() == "\ufeff":  # a byte order mark
            self.at += 1

    @property
    def offset(self) -> int:
        """The byte at which the next character stands."""
        self._offset += len(self.window[self._counted : self.at].encode())
        self._counted = self.at
        return self._offset

    def peek(self) -> str:
        """Skip white space and return the character after it, "" at the end of the file."""
        while True:
            self.at = SPACE.match(self.window, self.at).end()
            if self.at < len(self.window) or not self._more():
                return self.window[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        """Step over `character` if it comes next."""
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def value(self) -> object:
        """The object, list or text that begins here (a number might go on beyond the window: it is no row)."""
        while True:
            try:
                value, end = DECODE(self.window, self.at)
            except JSONDecodeError as error:
                # Perhaps the value only goes on beyond the window.
                if len(self.window) - self.at <= LONGEST_ROW and self._more():
                    continue
                raise ValueError(
                    f"{self.path}, row {self.row} is not valid JSON, or cut short: {error.msg} at "
                    f"{self.window[error.pos : error.pos + 20]!r}"
                ) from None
            except RecursionError:
                raise ValueError(f"{self.path}, row {self.row} is nested too deeply") from None
            self.at = end
            return value

    def glance(self) -> str:
        """What comes next, for a message."""
        self.peek()
        return self.window[self.at : self.at + 20]

    def _more(self) -> bool:
        """Drop what was read, and read on: as much again as there is left, so that a long row is not tried often."""
        self._offset, self._counted = self.offset, 0
        left = self.window[self.at :]
        content = self.file.read(max(CHUNK, len(left)))
        try:
            self.window, self.at = left + self.decoder.decode(content, final=not content), 0
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}, row {self.row} or soon after is not UTF-8: {error.reason}") from None
        return bool(content)
