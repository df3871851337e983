"""Folders of pictures, with text files and JSON beside them, as inputs of `capfilt pack`."""

from __future__ import annotations

import errno
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from blipcore.io.reading import read_head
from blipcore.io.samples import TEXT_SUFFIXES, parse_json
from blipcore.io.storage import AnyPath
from blipcore.io.text_encoding import decode_text
from capfilt.ingest.inputs.exif import img2dataset_orientation
from capfilt.ingest.inputs.input import PICTURE_LIKE_SUFFIXES, InputOptions, InputRow, Kind, PictureInput, file_row
from capfilt.ingest.inputs.sample_texts import SampleTexts, further_columns
from capfilt.ingest.inputs.splits import folder_split, select_split

SIDECAR_SUFFIXES = (*TEXT_SUFFIXES, "json")
MAX_SIDECAR_BYTES = 1 << 20  # of a text file or a JSON
# Files that describe a folder as a whole.
DESCRIPTIONS = ("readme", "license", "licence", "notice", "copying", "attribution", "credits", "requirements")
LIST_SUFFIXES = ("csv", "tsv", "json", "jsonl", "ndjson", "parquet")
IMG2DATASET_TABLE = re.compile(r"\d{5,}(_stats\.json|\.parquet)")  # the outcomes of a shard


def is_picture(name: str) -> bool:
    """Return whether a file has the suffix of a picture."""
    return _suffix(name) in PICTURE_LIKE_SUFFIXES


class FolderInput(PictureInput):
    """Pictures in a folder and its subfolders, in the order of their names; `name.txt` is the text of `name.jpg`."""

    def __init__(self, root: AnyPath, files: dict[str, int], options: InputOptions, kind: Kind = "folder") -> None:
        if kind == "folder":
            options.refuse_list_options(kind)
        pictures = [name for name in files if is_picture(name)]
        kept, splits = select_split(pictures, folder_split, options.split, root)
        self.root, self._sidecars = root, _index_sidecars(files)
        sidecars = {sidecar for name in kept for sidecar in self._sidecars_of(name).values()}
        # All .txt, though some are read for no picture: sets that were packed before have this fingerprint.
        left_out = set(pictures).difference(kept)
        read = [
            (name, size)
            for name, size in files.items()
            if (is_picture(name) and name not in left_out)
            or name in sidecars
            or (_suffix(name) == "txt" and not left_out)
        ]
        super().__init__(root, kind, read, options, splits=splits)
        self.format, self.picture = _describe(kept), "files"
        self.pictures = kept
        self._texts = SampleTexts(self, {_suffix(name) for name in sidecars})
        self._lists: list[str] = []  # files that may be annotations
        self._strays: list[str] = []  # text files with the name of no picture
        folders = list(dict.fromkeys(name.rpartition("/")[0] for name in kept))
        if len(folders) > 1 and not sidecars:
            self.notes.append(f"pictures in {len(folders):,} folders, such as {folders[-1]}, whose names are no texts.")
        sidecars |= {sidecar for name in left_out for sidecar in self._sidecars_of(name).values()}
        for name in files:
            if name not in sidecars and not is_picture(name):
                self._count_other(name)

    def _count_other(self, name: str) -> None:
        """Count a file that is no picture and belongs to none."""
        base, suffix = name.rpartition("/")[2], _suffix(name)
        if not base:
            self.ignored["folder not entered"] += 1
            return
        self.ignored[suffix or "no suffix"] += 1
        if base.lower().startswith(DESCRIPTIONS):
            return
        if suffix in LIST_SUFFIXES and not IMG2DATASET_TABLE.fullmatch(base):
            self._lists.append(name)
        elif suffix in TEXT_SUFFIXES:
            self._strays.append(name)
            self.add_problem(f".{suffix} files that have the name of no picture", name)

    def require_texts(self) -> None:
        strays = (self._lists or self._strays) and not self.unreadable
        if strays and not self.options.text_names and not self.account.rows_with_text:
            problem = f"{self.source} has no text beside any of its pictures"
            remedy = "or give --caption-col none to read no texts"
            if self._lists:
                raise ValueError(
                    f"{problem}, but {self.root / self._lists[0]} may hold them: give it with --annotations, {remedy}."
                )
            raise ValueError(
                f"{problem}: {self._strays[0]} has the name of none. If it lists pictures, give it with --annotations, "
                f"otherwise the names of pictures to text files, {remedy}."
            )
        super().require_texts()

    def read_rows(self) -> Iterator[InputRow]:
        for name in self.pictures:
            yield self.row(name)

    def row(self, name: str) -> InputRow:
        """Return the row of a picture with the texts beside it."""
        sidecars = self._sidecars_of(name)
        content = self._read_json(sidecars["json"]) if "json" in sidecars else None
        undecodable: list[str] = []
        files: dict[str, Callable[[], str | None]] = {
            suffix: partial(self._read_text, file, undecodable) for suffix, file in sidecars.items() if suffix != "json"
        }
        row = file_row(self.root, name, self._texts.choose(files, content, name))
        if undecodable:
            row["error"] = f"text: {undecodable[0]}"
        if isinstance(content, dict):
            url = content.get("url")
            if isinstance(url, str) and "://" in url:
                row["url"] = url
            row["orientation"] = img2dataset_orientation(content)
            row["columns"] = further_columns(content, self.options.text_names)
        return row

    def _sidecars_of(self, name: str) -> dict[str, str]:
        """Return suffix -> name of the text files and the JSON of a picture."""
        return self._sidecars.get(_fold(name.rpartition(".")[0])) or self._sidecars.get(_fold(name)) or {}

    def _read_text(self, name: str, undecodable: list[str]) -> str | None:
        """Return a text; None if it cannot be read, with the reason in `undecodable`."""
        data = self._read_bytes(name)
        if data is None:
            return None
        try:
            return decode_text(data, self.options.encoding).strip()
        except ValueError as error:
            undecodable.append(f"{name} is not text in {self.options.encoding or 'UTF-8'} ({error})")
            self.unreadable = self.unreadable or undecodable[0]
            remedy = "another --encoding" if self.options.encoding else "--encoding, such as cp1252"
            self.add_problem(f"text files in another encoding, not read; {remedy} may read them", name)
            return None

    def _read_json(self, name: str) -> Any:
        data = self._read_bytes(name)
        content = parse_json(data) if data else None
        if content is None:
            self.unreadable = self.unreadable or f"{name} is not valid JSON"
            self.add_problem("JSON files that cannot be read", name)
        return content

    def _read_bytes(self, name: str) -> bytes | None:
        path = self.root / name
        try:
            if isinstance(path, Path) and not path.is_file():  # reading a pipe would never end
                raise OSError(errno.EINVAL, "not a regular file")
            data = read_head(path, MAX_SIDECAR_BYTES + 1)
        except OSError as error:
            self.add_problem("text files that cannot be read", f"{name} ({error.strerror})")
            return None
        if len(data) > MAX_SIDECAR_BYTES:
            self.add_problem(f"text files above {MAX_SIDECAR_BYTES >> 20} MiB, not read", name)
            return None
        return data


def _describe(pictures: list[str]) -> str:
    """Return the number of pictures by suffix."""
    counts = Counter(_suffix(name) for name in pictures)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(5))


def _index_sidecars(files: dict[str, int]) -> dict[str, dict[str, str]]:
    """Return name without suffix -> suffix -> name of the text and JSON files."""
    sidecars: dict[str, dict[str, str]] = {}
    for name in files:
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() in SIDECAR_SUFFIXES and "/" not in suffix:
            sidecars.setdefault(_fold(stem), {}).setdefault(suffix.lower(), name)
    return sidecars


def _fold(name: str) -> str:
    """Return a name with a suffix in lower case, if it is that of a picture, and with composed accents."""
    stem, _, suffix = name.rpartition(".")
    return unicodedata.normalize("NFC", f"{stem}.{suffix.lower()}" if suffix.lower() in PICTURE_LIKE_SUFFIXES else name)


def _suffix(name: str) -> str:
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""
