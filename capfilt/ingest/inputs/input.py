"""The protocol of an input of `capfilt pack`, and helpers that build the rows it yields."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any, Literal, get_args

import pyarrow as pa

from blipcore.io.samples import PICTURE_SUFFIXES, TEXT_KEYS
from blipcore.io.storage import AnyPath
from capfilt.ingest.account import NO_TEXTS, Account
from capfilt.ingest.inputs.annotation_cells import keys_of_texts, texts_of
from capfilt.ingest.inputs.splits import is_chosen, wanted_splits
from capfilt.ingest.lists.list_files import ListOptions

Kind = Literal["folder", "imagefolder", "annotations", "parquet", "dataset", "webdataset"]
KINDS: tuple[str, ...] = get_args(Kind)

# Files with these suffixes get a row even if nothing installed can decode them; the row then gives the reason.
PICTURE_LIKE_SUFFIXES = PICTURE_SUFFIXES | {"svg", "psd"}

# Values that are no captions: links, JSON, paths, digests, numbers, dates.
NO_CAPTION = re.compile(r"\s*(\w+://|[\[{]|\S*\d\S*\s*$|\S+\.\w{1,5}\s*$)")
# Keys and columns that are no captions: those of img2dataset, webdataset and `capfilt`, and of most datasets.
TECHNICAL_NAMES = frozenset(
    [
        *("key", "__key__", "__url__", "url", "image_url", "id", "uid", "uuid", "image_id", "img_id", "split"),
        *("image", "img", "image_path", "file_name", "filename", "filepath", "path", "format", "mode"),
        *("status", "error", "error_message", "exif", "hash", "md5", "sha1", "sha256", "sha512", "phash", "dhash"),
        *("license", "licence"),
    ]
)

# A row of `plans.PLAN_SCHEMA`, with a list "texts" in place of its "caption", and its further cells "columns". Texts
# with cells of their own have them in "text_columns", a dict or None per text.
InputRow = dict[str, Any]


@dataclass(frozen=True)
class InputOptions:
    """Settings of the user for an input; what is None or empty is detected."""

    annotations: str | None = None  # file that names the pictures
    kind: str | None = None  # one of KINDS
    split: str | None = None  # several joined by "+", or "all"
    image_col: str | None = None  # of paths or of bytes
    caption_col: tuple[str, ...] = ()  # columns, suffixes or JSON keys; "none" to read no texts
    encoding: str | None = None  # of texts that are not UTF-8
    no_header: bool = False  # of lists: the fields of ListOptions
    columns: tuple[str, ...] = ()
    quoting: Literal["", "none", "double", "backslash"] = ""

    @property
    def text_names(self) -> tuple[str, ...]:
        """Columns, suffixes or keys of the texts; empty if they are detected or not read."""
        return self.caption_col if self.reads_texts else ()

    @property
    def reads_texts(self) -> bool:
        """True if texts are read at all."""
        return NO_TEXTS not in self.caption_col

    def list_options(self, file_format: str = "") -> ListOptions:
        """Return how to read a list."""
        return ListOptions(file_format, self.no_header, self.columns, self.quoting, self.encoding or "")

    def refuse_list_options(self, kind: str) -> None:
        """Raise ValueError for an option of lists."""
        self.refuse(kind, "image_col", "no_header", "columns", "quoting")

    def refuse(self, kind: str, *names: str) -> None:
        """Raise ValueError for an option that does not apply to this kind of input."""
        for name in names:
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} does not apply to an input of the kind '{kind}'.")

    def refuse_kind(self, kind: str) -> None:
        """Raise ValueError if the user has chosen another kind."""
        if self.kind not in (None, kind):
            raise ValueError(f"--kind {self.kind} does not apply to an input of the kind '{kind}'.")


class PictureInput(ABC):
    """Pictures and their texts. Iterating yields an `InputRow` per picture, without decoding any.

    `account` is complete at the end. Raises ValueError there if no row has a text and some may exist.
    """

    def __init__(
        self,
        source: AnyPath,
        kind: Kind,
        files: list[tuple[str, int]],
        options: InputOptions,
        *,
        splits: tuple[str, ...] = (),
        annotation_fingerprint: str = "",
    ) -> None:
        self.source, self.files, self.options, self.splits = source, files, options, splits
        self.kind: Kind = kind
        self.annotation_fingerprint = annotation_fingerprint
        self.format = self.picture = ""  # of the account
        self.file_count = len(files)
        self.ignored: Counter[str] = Counter()  # numbers of other files or members, by kind
        self.texts: Counter[str] = Counter(
            dict.fromkeys(options.text_names, 0)
        )  # rows with a text, by column or suffix
        self.unused: Counter[str] = Counter()  # columns, files or keys that may hold texts
        self.notes: list[str] = []
        # Types of the rows' "columns", where the input has some; None for texts and JSON.
        self.further: pa.Schema | None = None
        self.unreadable = ""  # the first text that cannot be read
        self._problems: dict[str, tuple[int, str]] = {}
        self._row_splits: Counter[str | None] = Counter()
        self._rows = self._rows_with_text = 0
        self.is_read = False  # whether all rows have been read, and `account` is complete

    def __iter__(self) -> Iterator[InputRow]:
        for row in self.read_rows():
            if not self._is_chosen(row.pop("split", None)):
                continue
            if not self.options.reads_texts:
                row |= {"texts": [], "text_columns": None}
            if any("\0" in text for text in row["texts"]):
                kept = ["\0" not in text for text in row["texts"]]
                row["text_columns"] = [*compress(row.get("text_columns") or (), kept)]
                row["texts"] = [*compress(row["texts"], kept)]
                self.unreadable = self.unreadable or f"a text of {row['url']} has a NUL"
                self.add_problem("texts with a NUL, not read", str(row["url"]))
            self._rows += 1
            self._rows_with_text += any(text and not text.isspace() for text in row["texts"])
            yield row
        if not self.splits:
            names = [name for name in self._row_splits if name is not None]
            if names or self.options.split:
                self.splits = wanted_splits(names, self.options.split, self.source)
        self.is_read = True
        if self.options.reads_texts:
            self.require_texts()

    def _is_chosen(self, split: str | None) -> bool:
        """Return `is_in_split`, and count the splits of rows."""
        if not self.splits:
            self._row_splits[split or None] += 1
        return self.is_in_split(split)

    def is_in_split(self, split: str | None) -> bool:
        """Return whether a row is in a chosen split, by its own "split" unless that of its file is known."""
        return bool(self.splits) or is_chosen(split, self.options.split)

    @abstractmethod
    def read_rows(self) -> Iterator[InputRow]:
        """Yield a row per picture, with its "split" if its file has none; count `texts` and `unused`.

        A row of another split may have its "split" only.
        """

    def require_texts(self) -> None:
        """Raise ValueError if no row has a text and some may exist."""
        if self.unreadable and not self._rows_with_text:
            raise ValueError(
                f"{self.source} has no text that can be read: {self.unreadable}. Give another --encoding, or give "
                "--caption-col none to read no texts."
            )
        self.account.require_texts(str(self.source), self.options.text_names)

    def add_problem(self, problem: str, example: str) -> None:
        """Count a problem of a row; the account notes it with its first example."""
        count, first = self._problems.get(problem, (0, example))
        self._problems[problem] = (count + 1, first)

    @property
    def account(self) -> Account:
        """The account of the input, with the counts of the rows read so far."""
        problems = [f"{problem}: {count:,}, such as {first}." for problem, (count, first) in self._problems.items()]
        texts = dict(self.texts) if self.options.reads_texts else {}
        return Account(
            kind=self.kind,
            files=self.file_count,
            format=self.format,
            splits=self.splits,
            picture=self.picture,
            texts=texts,
            unused=tuple(name for name in self.unused if not texts.get(name)),
            rows=self._rows,
            rows_with_text=self._rows_with_text,
            notes=(*self.notes, *problems),
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the files' names and sizes and of the content of the annotation file."""
        digest = hashlib.sha256(self.annotation_fingerprint.encode())
        for name, size in self.files:
            digest.update(f"{name}\0{size}\n".encode("utf-8", errors="surrogateescape"))
        return digest.hexdigest()[:16]


def file_row(root: AnyPath, name: str, texts: list[str]) -> InputRow:
    """Return the row of a picture in a file of its own."""
    row: InputRow = {"url": name, "texts": texts}
    try:
        return row | {"body": os.fsencode(str(root / name))}
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON may hold: no file has such a name
        return row | {"status": "bad_url", "error": "no path"}


def caption_keys(metadata: Mapping[str, Any]) -> list[str]:
    """Return the keys of a JSON whose values look like captions: texts that are no links, paths or digests."""
    usual = (key for key in metadata if key.lower() in TEXT_KEYS)
    nested = [name for key in usual for name in keys_of_texts(key, metadata[key])]
    if any(key.lower() == "caption" for key in metadata):
        return nested  # the caption is empty, or an object of captions
    return [key for key, value in metadata.items() if may_hold_texts(key) and looks_like_caption(value)] + nested


def may_hold_texts(name: str) -> bool:
    """Return whether a column or key of this name may hold captions."""
    return name.lower() not in TECHNICAL_NAMES


def looks_like_caption(value: Any) -> bool:
    """Return whether the first text of a value is no link, path, digest or number."""
    texts = texts_of(value)[:1] if isinstance(value, str | list | dict) else []
    return any(text.strip() and not NO_CAPTION.match(text) for text in texts)
