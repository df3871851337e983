"""Groups the members of a tar into samples, and chooses the texts of a picture.

A key is a member's name up to the first dot of its last part, as in webdataset: `a/0.jpg`, `a/0.txt` and `a/0.json`
are the picture, the text and the metadata of the sample `a/0`. They need not be adjacent.

The text of a picture is the first that is not blank: its `.txt`, its `.caption` or another of `TEXT_SUFFIXES`, the
caption in its `.json`, the caption in the table beside the tar. Filter, export, trainer and pack share this rule
(`choose_texts`, `choose_text`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from blipcore.io.reading import open_read, read_at
from blipcore.io.storage import AnyPath, to_path
from blipcore.io.tars import TarMember, TarProblem, walk_tar
from blipcore.io.text_encoding import decode_text

PICTURE_SUFFIXES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "jp2", "ppm"),
        *("avif", "heic", "heif", "jxl"),
    ]
)
TEXT_SUFFIXES = ("txt", "caption", "cap", "text", "captions")  # the first that is not blank is used
# Keys of a JSON that hold captions, in any case; the first that holds a text is used. LAION-COCO has `top_caption`.
TEXT_KEYS = ("caption", "captions", "text", "texts", "top_caption", "all_captions", "sentences")
# Larger members are damage or an attack on the memory: dozens of samples are read ahead.
MAX_PICTURE_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 24
# suffix -> attribute of SampleMembers
PARTS = {**dict.fromkeys(PICTURE_SUFFIXES, "image"), **dict.fromkeys(TEXT_SUFFIXES, "texts"), "json": "metadata"}


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
    """The members of one sample, without their content."""

    image: TarMember | None = None
    texts: tuple[TarMember, ...] = ()  # in the order of TEXT_SUFFIXES
    metadata: TarMember | None = None


class IndexedTar:
    """A tar whose samples are indexed by key and read in any order; a context manager.

    `samples` has the order of the first members; `problems` lists the tar's defects, texts that cannot be decoded
    once they have been read; `unused` counts members that are no part of a sample, by suffix. `encoding` is that of
    texts that are not UTF-8; `fields` are further suffixes of texts, such as "alt.txt".
    """

    def __init__(self, path: AnyPath, encoding: str | None = None, fields: Container[str] = ()) -> None:
        self._file, self._encoding = open_read(path), encoding
        self.problems: list[TarProblem] = []
        self.unused: Counter[str] = Counter()
        self._undecodable: set[str] = set()
        self.samples = index_samples(self._file, self.problems, self.unused, fields)

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

    def read_json(self, members: SampleMembers) -> Any:
        """Return the JSON of a sample, None if it is missing or unreadable."""
        data = self.read(members.metadata)
        return parse_json(data) if data else None

    def read_metadata(self, members: SampleMembers) -> dict[str, Any]:
        """Return the JSON object of a sample, empty if it is missing, unreadable or no object."""
        content = self.read_json(members)
        return content if isinstance(content, dict) else {}

    def read_text(self, members: SampleMembers, content: Any = None) -> str | None:
        """Return the text of a sample; `content` is its JSON, which is read if None."""
        return next(iter(self.read_texts(members, content)), None)

    def read_texts(self, members: SampleMembers, content: Any = None) -> list[str]:
        """Return the text of a sample and its further captions; `content` is its JSON, which is read if None."""
        texts = (self.read_text_member(member) for member in members.texts)
        return choose_texts(texts, lambda: self.read_json(members) if content is None else content)

    def read_text_member(self, member: TarMember) -> str | None:
        """Return a text file of a sample, None if it is cut short or cannot be decoded."""
        data = self.read(member)
        try:
            return None if data is None else decode_text(data, self._encoding)
        except ValueError:
            if member.name not in self._undecodable:
                self._undecodable.add(member.name)
                self.problems.append(TarProblem("undecodable_text", member.name))
            return None


def parse_json(data: bytes) -> Any:
    """Return the JSON in `data`, None if it is no JSON, no UTF-8 or has too many brackets."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def choose_text(*candidates: str | None) -> str | None:
    """Return the first text that is not blank, else the first that is not None, as it was written."""
    for text in candidates:
        if text and not text.isspace():
            return text
    return next((text for text in candidates if text is not None), None)


def choose_texts(files: Iterable[str | None], read_json: Callable[[], Any]) -> list[str]:
    """Return the text of a picture, then its further captions.

    `files` are its text files by rank, and `read_json` returns the content of its JSON. The first file that is not
    blank is used. Its lines are captions of their own if there are several and none is blank, unless the JSON holds
    the whole as caption, as that of img2dataset and `capfilt` does.
    """
    blank: str | None = None
    for text in files:
        if text and not text.isspace():
            lines = [line.strip() for line in text.strip().split("\n")]
            if len(lines) == 1 or not all(lines) or text.strip() in map(str.strip, json_texts(read_json())):
                return [text]
            return lines
        blank = text if blank is None else blank
    texts = json_texts(read_json())
    if blank is not None and not any(text and not text.isspace() for text in texts):
        return [blank]
    return texts


def json_texts(content: Any) -> list[str]:
    """Return the captions in the JSON of a picture: a list, a text, or the value of the first of `TEXT_KEYS` with any.

    A JSON with a "caption", even null, has no other captions.
    """
    return find_captions(content)[1]


def find_captions(content: Any) -> tuple[str, list[str]]:
    """Return the captions in the JSON of a picture and their key, "" for a JSON that is a list or a text."""
    if not isinstance(content, dict):
        return "", value_texts(content)
    if "caption" in content:
        return "caption", value_texts(content["caption"])
    names = {name.lower(): name for name in reversed(content)}
    found = ((names[key], value_texts(content[names[key]])) for key in TEXT_KEYS if key in names)
    return next(((name, texts) for name, texts in found if texts), ("", []))


def value_texts(value: Any) -> list[str]:
    """Return the texts of a value: a string, a list of them, or of objects with a "raw" text or one of `TEXT_KEYS`."""
    if isinstance(value, str):
        # JSON may hold half of a surrogate pair, which no table can store.
        return [value.encode("utf-8", errors="replace").decode("utf-8")]
    if isinstance(value, list | tuple):
        return [text for item in value for text in value_texts(item)]
    if isinstance(value, dict):
        keys = ("raw", *TEXT_KEYS)  # Karpathy's and COCO's lists of sentences
        return next((value_texts(value[key]) for key in keys if isinstance(value.get(key), str | list)), [])
    return []


def read_samples(
    path: str | AnyPath, problems: list[TarProblem] | None = None, keys: Container[str] | None = None
) -> Generator[TarSample, None, None]:
    """Yield the samples of a tar in the order of their first members, each key once.

    Defects of the tar are appended to `problems`. With `keys`, other samples are skipped.
    """
    with IndexedTar(to_path(path)) as tar:
        reported = 0
        for key, members in tar.samples.items():
            if keys is not None and key not in keys:
                continue
            content = tar.read_json(members)
            metadata = content if isinstance(content, dict) else {}
            text = tar.read_text(members, content if content is not None else {})
            if problems is not None:
                problems += tar.problems[reported:]
                reported = len(tar.problems)
            image = tar.read(members.image)
            if image is None:
                error = "truncated_tar" if members.image else "no_picture"
                yield TarSample(key, b"", text, metadata, error)
            else:
                yield TarSample(key, image, text, metadata)
        if problems is not None:
            problems += tar.problems[reported:]


def index_samples(
    file: BinaryIO, problems: list[TarProblem], unused: Counter[str], fields: Container[str] = ()
) -> dict[str, SampleMembers]:
    """Return key -> members of the samples of a tar, in the order of the first members; count the other members."""
    samples: dict[str, SampleMembers] = {}
    texts_with_field: list[tuple[str, str, TarMember]] = []
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
        last = suffix.rpartition(".")[2].lower()
        part = PARTS.get(suffix) or PARTS.get(last)
        if part is None:  # another field of a webdataset sample: 00012.cls
            unused[last] += 1
            continue
        if member.size > (MAX_PICTURE_BYTES if part == "image" else MAX_TEXT_BYTES):
            problems.append(TarProblem("large_member", member.name))
            continue
        key = folder + slash + stem
        members = samples.get(key)
        if members is None:
            members = samples[key] = SampleMembers()
        if part == "texts":
            if "." in suffix:
                texts_with_field.append((key, suffix, member))
            elif any(_suffix(text) == last for text in members.texts):
                problems.append(TarProblem("duplicate_member", member.name))
            else:
                members.texts = tuple(sorted((*members.texts, member), key=_rank)) if members.texts else (member,)
            continue
        earlier: TarMember | None = getattr(members, part)
        if earlier is None or (_has_field(earlier) and "." not in suffix):
            setattr(members, part, member)
        elif _has_field(earlier) == ("." in suffix):
            problems.append(TarProblem("duplicate_member", member.name))
    for key, suffix, member in texts_with_field:
        members = samples[key]
        field = suffix.rpartition(".")[0]
        if suffix.lower() in fields:
            members.texts += (member,)
        elif members.texts or field.lower() not in (*TEXT_SUFFIXES, *_picture_fields(members.image)):
            unused[suffix.lower()] += 1  # url.txt, alt.txt
        else:
            members.texts = (member,)
    return samples


def _suffix(member: TarMember) -> str:
    return member.name.rpartition(".")[2].lower()


def _rank(member: TarMember) -> int:
    return TEXT_SUFFIXES.index(_suffix(member))


def _picture_fields(image: TarMember | None) -> tuple[str, ...]:
    """Return the dotted part of a picture's name: photo.v2.txt is the text of photo.v2.jpg."""
    parts = image.name.rpartition("/")[2].lower().split(".") if image else []
    return (".".join(parts[1:-1]), ".".join(parts[1:])) if len(parts) > 1 else ()


def _has_field(member: TarMember) -> bool:
    """Return whether a name has more than one dot: 0.depth.png is the picture only if 0.jpg is missing."""
    return member.name.rpartition("/")[2].count(".") > 1
