"""The protocol of an input of `capfilt pack`, and helpers that build the rows it yields."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from blipcore.io.samples import PICTURE_SUFFIXES
from blipcore.io.storage import AnyPath
from capfilt.ingest.plans import NO_COLUMNS
from capfilt.ingest.urls import CAPTION_COLUMNS

# Files with these suffixes get a row even if nothing installed can decode them; the row then gives the reason.
PICTURE_LIKE_SUFFIXES = PICTURE_SUFFIXES | {"jfif", "jpe", "dib", "heic", "heif", "jxl", "svg", "psd"}
PATH_COLUMNS = ("image", "file_name", "filename", "image_path", "filepath", "path", "file", "img")
TEXT_COLUMNS = (*CAPTION_COLUMNS, "captions", "texts", "sentences")

# A row of `shard_writer.PLAN_SCHEMA`, with a list "texts" in place of its "caption".
InputRow = dict[str, Any]


class InputColumns(NamedTuple):
    """Column names given by the user; None means one of the usual names."""

    image: str | None  # of paths or of bytes
    caption: str | None


@dataclass
class PictureInput(ABC):
    """Pictures and their texts. Iterating yields an `InputRow` per picture, without decoding any."""

    kind: str
    files: list[tuple[str, int]]  # names and sizes
    annotation_fingerprint: str = ""
    ignored: Counter[str] = field(default_factory=Counter)  # number of other files or members, by kind
    # types of the rows' "columns", where the input has some; None for texts only
    further: pa.Schema | None = NO_COLUMNS

    @abstractmethod
    def __iter__(self) -> Iterator[InputRow]: ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the files' names and sizes and of the content of the annotation file."""
        digest = hashlib.sha256(self.annotation_fingerprint.encode())
        for name, size in self.files:
            digest.update(f"{name}\0{size}\n".encode("utf-8", errors="surrogateescape"))
        return digest.hexdigest()[:16]


def file_row(root: AnyPath, name: str, texts: list[str | None]) -> InputRow:
    """Return the row of a picture in a file of its own."""
    row: InputRow = {"url": name, "texts": texts}
    try:
        return row | {"body": os.fsencode(str(root / name))}
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON may hold: no file has such a name
        return row | {"status": "bad_url", "error": "no path"}
