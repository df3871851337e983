"""Groups the members of a tar into samples: picture, text and metadata per key."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, to_path

PICTURE_SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm"])


@dataclass
class TarSample:
    """One sample of a shard; `image` is empty exactly when `error` names why its bytes cannot be had."""

    key: str
    image: bytes
    text: str | None = None
    metadata: dict = field(default_factory=dict)
    error: str | None = None


class TarProblem(NamedTuple):
    """Something in a tar that is no sample: `reason` from a closed list, `member` the name it concerns."""

    reason: str  # truncated_tar, corrupt_tar, link_member, unsafe_name, duplicate_member, foreign_member
    member: str


class TarMember(NamedTuple):
    """A regular file inside a tar: where its bytes lie."""

    name: str
    offset: int
    size: int


def read_samples(
    tar_path: str | AnyPath, problems: list[TarProblem] | None = None, keys: Container[str] | None = None
) -> Iterator[TarSample]:
    """Samples of a tar in the order of their first members, each key once; what is wrong is appended to `problems`.

    With `keys` only these, and of the others no more than the headers is read. A key is the member's name up to the
    first dot of its basename, as webdataset has it. Members of one sample need not be adjacent. A sample without a
    readable picture comes with `error` = `no_picture` or `truncated_tar`.
    """
    problems = [] if problems is None else problems
    with open_read(to_path(tar_path)) as file:
        end = file.seek(0, io.SEEK_END)
        for key, parts in index_samples(file, end, problems).items():
            if keys is not None and key not in keys:
                continue
            text, meta = read_words(file, end, parts)
            image = _read_member(file, end, parts.get("image"))
            if image is None:
                yield TarSample(key, b"", text, meta, error="truncated_tar" if "image" in parts else "no_picture")
            else:
                yield TarSample(key, image, text, meta)


def index_samples(file: BinaryIO, end: int, problems: list[TarProblem]) -> dict[str, dict[str, TarMember]]:
    """Key -> its members ("image", "text", "meta") of a tar of `end` bytes, in the order of their first members."""
    samples: dict[str, dict[str, TarMember]] = {}
    for member in walk_tar(file, end, problems):
        split = _split(member.name, problems)
        if split is None:
            continue
        key, part = split
        parts = samples.setdefault(key, {})
        first = parts.setdefault(part, member)
        if _dotted(first) and not _dotted(member):
            parts[part] = member
        elif first is not member and _dotted(first) == _dotted(member):
            problems.append(TarProblem("duplicate_member", member.name))
    return samples


def _dotted(member: TarMember) -> bool:
    """Whether a name has more dots than one: beside 0.jpg, 0.depth.png is another field; alone it is the picture."""
    return member.name.rpartition("/")[2].count(".") > 1


def read_words(file: BinaryIO, end: int, parts: dict[str, TarMember]) -> tuple[str | None, dict]:
    """The text and the JSON object of a sample; the text may lie in the object as its "caption"."""
    raw_text, raw_meta = _read_member(file, end, parts.get("text")), _read_member(file, end, parts.get("meta"))
    try:
        meta = json.loads(raw_meta) if raw_meta else {}
    except (ValueError, RecursionError):  # covers JSON and Unicode mistakes, and brackets in brackets
        meta = {}
    meta = meta if isinstance(meta, dict) else {}
    text = meta.get("caption") if raw_text is None else raw_text.decode("utf-8", errors="replace")
    if not isinstance(text, str):
        return None, meta
    return text.encode("utf-8", errors="replace").decode("utf-8"), meta  # JSON may hold half of a surrogate pair


def _read_member(file: BinaryIO, end: int, member: TarMember | None) -> bytes | None:
    if member is None or member.offset + member.size > end:
        return None
    file.seek(member.offset)
    return file.read(member.size)


def _split(name: str, problems: list[TarProblem]) -> tuple[str, str] | None:
    """("00012", "image" | "text" | "meta") of a member, None for what is none of ours."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    if name.startswith("/") or ".." in name.split("/"):
        problems.append(TarProblem("unsafe_name", name))
        return None
    stem, dot, suffix = base.partition(".")
    last = suffix.rpartition(".")[2].lower()
    part = "image" if last in PICTURE_SUFFIXES else {"txt": "text", "json": "meta"}.get(last)
    if not stem or not dot:  # .DS_Store, README
        problems.append(TarProblem("foreign_member", name))
        return None
    if part is None:  # another field of the sample, as webdataset allows: 00012.cls
        return None
    return folder + slash + stem, part


def walk_tar(file: BinaryIO, end: int, problems: list[TarProblem], position: int = 0) -> Iterator[TarMember]:
    """Regular members of a tar of `end` bytes by walking its headers (ustar, GNU long names, PAX paths).

    Our own walk, since the standard library's stops without a word at a damaged header.
    """
    long_name, member = None, ""
    while position + 512 <= end:
        file.seek(position)
        header = file.read(512)
        if header.count(0) == 512:  # the end mark; what follows is padding
            return
        size = _number(header[124:136])
        if size is None or size < 0 or not _checksum_fits(header):  # below 0 the walk would go back for ever
            problems.append(TarProblem("corrupt_tar", f"byte {position}, after {member!r}"))
            return
        kind, data = header[156:157], position + 512
        position = data + -(-size // 512) * 512
        if kind in b"LxgK":
            content = file.read(min(size, 1 << 20))
            if kind == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", errors="replace")
            elif kind == b"x":
                long_name = _pax_path(content) or long_name
            continue
        member, long_name = long_name or _header_name(header), None
        if kind in (b"0", b"\0", b"7"):
            yield TarMember(member, data, size)
        elif kind != b"5":
            problems.append(TarProblem("link_member", member))
    problems.append(TarProblem("truncated_tar", member))


def _number(raw: bytes) -> int | None:
    if raw[:1] == b"\x80":
        return int.from_bytes(raw[1:], "big")
    try:
        return int(raw.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _checksum_fits(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * 32


def _header_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", errors="replace")


def _pax_path(content: bytes) -> str | None:
    found = re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", content)
    return found.group(1).decode("utf-8", errors="replace") if found else None
