"""The account of an input: its kind, where its pictures and texts come from, and how many rows have a text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from blipcore.io.messages import shorten
from capfilt.shards.manifest import Manifest

NO_TEXTS = "none"  # value of --caption-col
MAX_NAMES = 20  # of columns or files in a line


@dataclass(frozen=True)
class Account:
    """A description of an input as it is read.

    `download` and `pack` print it before they fetch or decode, `inspect` prints it alone. It is part of
    their summaries and manifests. Fields that do not apply to an input are empty.
    """

    kind: str  # such as "URL list", "folder" or "webdataset"
    files: int = 0
    format: str = ""  # of the files, such as "tsv, UTF-8, no header, quotes are part of the text"
    splits: tuple[str, ...] = ()  # that are read
    picture: str = ""  # column or files of the pictures
    # column, file or JSON field -> rows in which it holds a text; the first text of a row is its web text
    texts: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()  # columns, files or fields that may hold texts and are not read
    kept: tuple[str, ...] = ()  # further columns that are stored with each row
    rows: int = 0
    rows_with_text: int = 0
    notes: tuple[str, ...] = ()  # decisions and problems, each a sentence

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that apply, as JSON values."""
        content = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        counted = ("kind", "texts", "rows", "rows_with_text")
        return {name: value for name, value in content.items() if value or name in counted}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Account:
        """Return the account of a manifest."""
        known = {field.name for field in fields(Account)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in known
        }
        return Account(**values)

    def to_lines(self) -> list[str]:
        """Return the account as lines of a name and a value."""
        texts = ", ".join(f"{name} ({count:,} rows)" for name, count in self.texts.items()) or "none"
        values = {
            "input": f"{self.kind} of {self.files:,} file{'s' * (self.files != 1)}" if self.files else self.kind,
            "format": self.format,
            "splits": ", ".join(self.splits),
            "picture": self.picture,
            "texts": texts,
            "not used": shorten(self.unused, MAX_NAMES),
            "kept": shorten(self.kept, MAX_NAMES),
            "rows": f"{self.rows:,}, {self.rows_with_text:,} with a text",
        }
        lines = [f"{name:<8}  {value}" for name, value in values.items() if value]
        return lines + [f"{'note':<8}  {note}" for note in self.notes]

    def print(self) -> None:
        """Print the account on stderr; stdout is for the summary."""
        print("\n".join(self.to_lines()), file=sys.stderr, flush=True)

    def require_texts(self, source: str, requested: Sequence[str]) -> None:
        """Raise ValueError if texts were `requested` or may exist, and no row has one.

        `requested` are the names given by the user; each must hold a text in at least one row.
        """
        if not self.rows:
            return
        empty = [name for name in requested if not self.texts.get(name)]
        if empty:
            problem = f"{source} has no text in {_quote(empty)} in any of its {self.rows:,} rows"
            others = [name for name in (*self.texts, *self.unused) if name not in empty]
            raise ValueError(f"{problem}; --caption-col may name {_quote(others)}." if others else f"{problem}.")
        if not self.rows_with_text and self.unused:
            where = (
                f"in {_quote(list(self.texts))} in any of its {self.rows:,} rows" if self.texts else "in a usual place"
            )
            raise ValueError(
                f"{source} has no text {where}, but {_quote(self.unused)} may hold texts. Name one or more with "
                "--caption-col, or give --caption-col none to read no texts."
            )


def record_account(manifest: Manifest, account: Account | None, progress: bool) -> dict[str, Any] | None:
    """Record the account of an input in the manifest of its set, and print it; return the recorded one.

    `account` is None in a run that has not read the input, because an earlier one has.
    """
    if account is not None:
        manifest.describe_input(account.to_dict())
    recorded = manifest.content.get("account")
    if progress and recorded:
        Account.from_dict(recorded).print()
    return recorded


def _quote(names: Sequence[str]) -> str:
    return shorten([f"'{name}'" for name in names], MAX_NAMES)
