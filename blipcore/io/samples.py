"""Groups the members of a tar into samples, and chooses the text of a picture.

A key is a member's name up to the first dot of its last part, as in webdataset: `a/0.jpg`, `a/0.txt` and `a/0.json`
are the picture, the text and the metadata of the sample `a/0`. They need not be adjacent.

The text of a picture is the first that is not blank: its `.txt`, the "caption" of its `.json`, the caption in the
table beside the tar. Filter, export and trainer share this rule (`choose_text`).
"""

from __future__ import annotations

import json
from collections.abc import Container, Generator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from blipcore.io.reading import open_read, read_at
from blipcore.io.storage import AnyPath, to_path
from blipcore.io.tars import TarMember, TarProblem, walk_tar

PICTURE_SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm"])
# suffix -> attribute of SampleMembers
PARTS = {**dict.fromkeys(PICTURE_SUFFIXES, "image"), "txt": "text", "json": "metadata"}


@dataclass
class TarSample:
    """One sample of a tar; `error` gives the reason for a missing image."""

    key: str
    image: bytes
    text: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None  # no_picture, truncated_tar


@dataclass(slots=True)
class SampleMembers:
    image: TarMember | None = None
    text: TarMember | None = None
    metadata: TarMember | None = None


class IndexedTar:
    """A tar whose samples are indexed by key and read in any order; a context manager.

    `samples` has the order of the first members; `problems` lists the tar's defects.
    """

    def __init__(self, path: AnyPath) -> None:
        self._file = open_read(path)
        self.problems: list[TarProblem] = []
        self.samples = index_samples(self._file, self.problems)

    def __enter__(self) -> IndexedTar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, member: TarMember | None) -> bytes | None:
        """Return the bytes of a member, None if it is missing or cut short."""
        if member is None or not member.complete:
            return None
        return read_at(self._file, member.offset, member.size)

    def read_metadata(self, members: SampleMembers) -> dict[str, Any]:
        """Return the JSON object of a sample, empty if it is missing or unreadable."""
        data = self.read(members.metadata)
        try:
            metadata = json.loads(data) if data else {}
        except (ValueError, RecursionError):  # no JSON, no UTF-8, or too many brackets
            return {}
        return metadata if isinstance(metadata, dict) else {}

    def read_text(self, members: SampleMembers, metadata: dict[str, Any] | None = None) -> str | None:
        """Return the `.txt` of a sample, or the "caption" of its `metadata`, which is read if None."""
        data = self.read(members.text)
        text = None if data is None else data.decode("utf-8", errors="replace")
        if text and not text.isspace():
            return text
        caption = (self.read_metadata(members) if metadata is None else metadata).get("caption")
        if not isinstance(caption, str):
            return text
        # JSON may hold half of a surrogate pair, which no table can store.
        return choose_text(text, caption.encode("utf-8", errors="replace").decode("utf-8"))


def choose_text(*candidates: str | None) -> str | None:
    """Return the first text that is not blank, else the first that is not None, as it was written."""
    for text in candidates:
        if text and not text.isspace():
            return text
    return next((text for text in candidates if text is not None), None)


def read_samples(
    path: str | AnyPath, problems: list[TarProblem] | None = None, keys: Container[str] | None = None
) -> Generator[TarSample, None, None]:
    """Yield the samples of a tar in the order of their first members, each key once.

    Defects of the tar are appended to `problems`. With `keys`, other samples are skipped.
    """
    with IndexedTar(to_path(path)) as tar:
        if problems is not None:
            problems += tar.problems
        for key, members in tar.samples.items():
            if keys is not None and key not in keys:
                continue
            metadata = tar.read_metadata(members)
            text = tar.read_text(members, metadata)
            image = tar.read(members.image)
            if image is None:
                error = "truncated_tar" if members.image else "no_picture"
                yield TarSample(key, b"", text, metadata, error)
            else:
                yield TarSample(key, image, text, metadata)


def index_samples(file: BinaryIO, problems: list[TarProblem]) -> dict[str, SampleMembers]:
    """Return key -> members of the samples of a tar, in the order of the first members."""
    samples: dict[str, SampleMembers] = {}
    for member in walk_tar(file, problems):
        name = member.name
        while name.startswith("./"):
            name = name[2:]
        folder, slash, base = name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            problems.append(TarProblem("unsafe_name", member.name))
            continue
        if not stem or not dot:  # .DS_Store, README
            problems.append(TarProblem("foreign_member", member.name))
            continue
        part = PARTS.get(suffix) or PARTS.get(suffix.rpartition(".")[2].lower())
        if part is None:  # another field of a webdataset sample: 00012.cls
            continue
        key = folder + slash + stem
        members = samples.get(key)
        if members is None:
            members = samples[key] = SampleMembers()
        earlier: TarMember | None = getattr(members, part)
        if earlier is None or (_has_field(earlier) and "." not in suffix):
            setattr(members, part, member)
        elif _has_field(earlier) == ("." in suffix):
            problems.append(TarProblem("duplicate_member", member.name))
    return samples


def _has_field(member: TarMember) -> bool:
    """Return whether a name has more than one dot: 0.depth.png is the picture only if 0.jpg is missing."""
    return member.name.rpartition("/")[2].count(".") > 1
