"""Writes tars for tests, including some that `tarfile` refuses to write."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

BLOCK = 512
END_MARK = bytes(2 * BLOCK)


def write_tar(
    path: Path,
    members: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    tar_format: Literal[0, 1, 2] = tarfile.PAX_FORMAT,
    mtime: float = 0,
) -> Path:
    """Write name -> content. In a pax tar, a fractional `mtime` gives every member an extended header."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime  # type: ignore[assignment]  # typeshed: int; tarfile takes floats
            tar.addfile(info, io.BytesIO(data))
    return path


def header(name: str, size: int, kind: bytes = b"0", link: str = "") -> bytes:
    """Return a ustar header with a valid checksum."""
    fields = [
        name.encode().ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        b"%011o\0" % size + b"00000000000\0",
        b" " * 8 + kind + link.encode().ljust(100, b"\0"),
        b"ustar\x0000",
    ]
    return with_checksum(b"".join(fields).ljust(BLOCK, b"\0"))


def with_checksum(block: bytes, changes: Mapping[int, bytes] | None = None) -> bytes:
    """Return a header with other bytes at some offsets and a valid checksum."""
    result = bytearray(block)
    for offset, data in (changes or {}).items():
        result[offset : offset + len(data)] = data
    result[148:156] = b" " * 8
    result[148:156] = b"%06o\0 " % sum(result)
    return bytes(result)


def padded(data: bytes) -> bytes:
    """Return the content of a member as it is stored."""
    return data + bytes(-len(data) % BLOCK)


def member(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    """Return a member: header and content."""
    return header(name, len(data), kind) + padded(data)


def pax_header(name: str, value: str | bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header with one record, for the next member; with the kind `g`, for all members."""
    return member("././@PaxHeader", pax_record(name, value), kind)


def pax_record(name: str, value: str | bytes) -> bytes:
    """Return "LENGTH NAME=VALUE\\n"; the length counts its own digits."""
    record = b" " + name.encode() + b"=" + (value.encode() if isinstance(value, str) else value) + b"\n"
    length = len(record) + 1
    while len(record) + len(str(length)) != length:
        length += 1
    return str(length).encode() + record


def gnu_long_name(name: str) -> bytes:
    """Return GNU's header with a long name, for the next member."""
    return member("././@LongLink", f"{name}\0".encode(), b"L")
