"""Checks that tables of an earlier run still fit their inputs.

The footer of a table has the digests of the tables and the tar that it was made from. An input that is not newer than
the table is not read again; the digest of a newer one tells a copy from a change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from blipcore.io.samples import IndexedTar
from blipcore.io.storage import AnyPath, existing_paths
from capfilt.shards.tables import read_inputs


class TarDigest:
    """A digest of the keys, texts and sizes of the pictures of a tar, added in the order of the tar."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, key: str, size: int, text: str | None) -> None:
        """Add a picture: its key, its size in bytes and its text."""
        self._digest.update(f"{key}\0{size}\0{text}\n".encode("utf-8", "surrogatepass"))

    def __str__(self) -> str:
        return self._digest.hexdigest()[:16]


def input_digests(inputs: Iterable[AnyPath]) -> dict[str, str]:
    """Return the digests of tables and tars by `input_name`."""
    return {input_name(path): _digest(path) for path in inputs}


def input_name(path: AnyPath) -> str:
    """Return the name of an input in a footer: the tar's name, or folder and name of a table."""
    return path.name if path.name.endswith(".tar") else f"{path.parent.name}/{path.name}"


def require_same_inputs(outputs: Mapping[AnyPath, Iterable[AnyPath]], remedy: str) -> None:
    """Raise ValueError if a table or tar from which an existing output was made has changed.

    `outputs` maps each output to its inputs.
    """
    present = existing_paths(outputs)
    for output, inputs in outputs.items():
        if output not in present or not isinstance(output, Path):
            continue
        written = output.stat().st_mtime_ns
        newer = [path for path in inputs if isinstance(path, Path) and _is_newer(path, written)]
        recorded = read_inputs(output) if newer else {}  # empty if an older version made it
        for path in newer:
            if input_name(path) in recorded and recorded[input_name(path)] != _digest(path):
                raise ValueError(f"{path} has changed since {output} was made from it; {remedy}.")
        if recorded:
            try:
                os.utime(output)  # copied or touched inputs need not be read next time
            except PermissionError:
                continue


def _is_newer(path: Path, written: int) -> bool:
    """Return whether a file was written, copied or renamed after a time in nanoseconds."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False  # named when it is read
    return max(status.st_mtime_ns, status.st_ctime_ns) > written


def _digest(path: AnyPath) -> str:
    if not path.name.endswith(".tar"):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with IndexedTar(path) as tar:
        return digest_tar(tar)


def digest_tar(tar: IndexedTar) -> str:
    """Return the digest of a tar, see `TarDigest`; reads its texts, but no picture."""
    digest = TarDigest()
    for key, members in tar.samples.items():
        size = members.image.size if members.image is not None and members.image.complete else 0
        digest.add(key, size, tar.read_text(members))
    return str(digest)
