"""The labels file of `capfilt label`: written whole after every answer, so that a killed session loses nothing.

CSV with the columns shard, key, source, index, match, drawn and text; `match` is 1, 0 or unsure, `drawn` is how the
text was chosen. `capfilt.filter.labels` reads it and ignores the text, which is there for people. The labelling view of
the report writes the same format (`labelsFile` in `report/page/label_stores.js`).
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from blipcore.io.lock import FolderLockedError, lock_folder
from blipcore.io.writing import write_text
from capfilt.filter.labels import UNSURE

COLUMNS = ("shard", "key", "source", "index", "match", "drawn", "text")
ANSWERS = ("1", "0", UNSURE)
Answer = Literal["1", "0", "unsure"]
MAX_BYTES = 1 << 28
# Characters of a text in the file.
MAX_CHARACTERS = 1000
_SPACE = re.compile("[\u0000-\u0020\u007f\u0085\u00a0\u2028\u2029]+")


class TextPlace(NamedTuple):
    """The place of a text in a data set."""

    shard: str
    key: str
    source: str
    index: int  # type: ignore[assignment]  # hides the method of tuples, which nobody calls


class Label(NamedTuple):
    """The answer for a text, how the text was drawn, and its words."""

    match: str
    drawn: str
    text: str


class LabelFile:
    """The labels of a file, in the order of the answers."""

    def __init__(self, path: Path) -> None:
        """Read the file if it exists. Raises ValueError for a file that `capfilt label` has not written."""
        self.path = path
        self._rows: dict[TextPlace, Label] = dict(_read_rows(path)) if path.exists() else {}

    def __len__(self) -> int:
        return len(self._rows)

    def places(self) -> list[TextPlace]:
        """Return the places of all labelled texts."""
        return list(self._rows)

    def answer(self, place: TextPlace) -> str | None:
        """Return the answer for a text, None if it has none."""
        label = self._rows.get(place)
        return None if label is None else label.match

    def set(self, place: TextPlace, answer: str | None, drawn: str, text: str) -> None:
        """Record an answer, or remove it with None, and write the file. If that fails, nothing changes."""
        rows = {other: row for other, row in self._rows.items() if other != place}
        if answer is not None:
            rows[place] = Label(answer, drawn, _plain(text))
        write_text(self.path, _to_csv(rows))
        self._rows = rows


@contextmanager
def locked_labels(path: Path) -> Iterator[LabelFile]:
    """Open a labels file that no other process writes meanwhile. Raises FolderLockedError if one does."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        with lock_folder(lock):
            yield LabelFile(path)
        with contextlib.suppress(OSError):  # left by a killed run
            lock.rmdir()
    except FolderLockedError as error:
        raise FolderLockedError(
            str(error).replace(str(lock), str(path)).replace("another name", "another --out")
        ) from None


def _read_rows(path: Path) -> Iterator[tuple[TextPlace, Label]]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path} has more than {MAX_BYTES >> 20} MiB, so it is no labels file; give another with --out."
        )
    try:
        rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        header = next(rows, None)
        if header != list(COLUMNS):
            raise ValueError(
                f"{path} was not written by `capfilt label`, whose columns are {', '.join(COLUMNS)}; "
                "give another file with --out."
            )
        answers: dict[TextPlace, str] = {}
        for number, row in enumerate(rows, 2):
            # An index has up to 9 digits: it is an int32.
            if len(row) != len(COLUMNS) or not re.fullmatch("[0-9]{1,9}", row[3]) or row[4] not in ANSWERS:
                raise ValueError(f"Row {number} of {path} is no label: {', '.join(row)[:200]}. Correct or remove it.")
            place = TextPlace(row[0], row[1], row[2], int(row[3]))
            if answers.setdefault(place, row[4]) != row[4]:
                raise ValueError(
                    f"{path} labels {' '.join(map(str, place))} twice, differently; remove one of the rows."
                )
            yield place, Label(*row[4:])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read {path} as CSV in UTF-8: {error}. Give another file with --out.") from None


def _to_csv(rows: dict[TextPlace, Label]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((*place, *label) for place, label in rows.items())
    return file.getvalue()


def _plain(text: str) -> str:
    """Return the text on one line; a spreadsheet would run one that starts like a formula."""
    line = _SPACE.sub(" ", text[:MAX_CHARACTERS]).strip(" ")
    return "'" + line if line.startswith(("=", "+", "-", "@")) else line
