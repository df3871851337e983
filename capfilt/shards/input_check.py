"""Notices inputs that have changed since the tables were made that a run would reuse.

Tables record the digests of the tables they were made from, in their footers. For tars, `.tars-RANK.json` in the folder
of the outputs has a digest of the members' names, sizes and texts. A tar that is not newer than this record is not read
again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, existing_paths
from blipcore.io.tars import walk_tar
from blipcore.io.writing import write_json
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_inputs

MAX_TEXT_BYTES = 1 << 16  # a larger member is a picture, known by its size
TEXT_SUFFIXES = (".txt", ".json", ".caption", ".cap")


def table_digests(tables: Iterable[AnyPath]) -> dict[str, str]:
    """Return the digests of local tables by folder and name; remote ones are left out, to save their transfer."""
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in tables
        if isinstance(path, Path)
    }


def require_same_tables(outputs: Mapping[AnyPath, Iterable[AnyPath]], remedy: str) -> None:
    """Raise ValueError if a table from which an existing output was made has changed.

    `outputs` maps each output to the tables that it is made from.
    """
    present = existing_paths(outputs)
    for output, tables in outputs.items():
        recorded = read_inputs(output) if output in present and isinstance(output, Path) else {}
        if not recorded:  # made by an older version
            continue
        for table in tables:
            if recorded != recorded | table_digests([table]):
                raise ValueError(f"{table} has changed since {output} was made from it; {remedy}.")


class TarRecord:
    """The digests of the tars from which the tables of a folder were made."""

    def __init__(self, folder: AnyPath, images: ShardSet, rank: int = 0) -> None:
        self.folder, self.images, self.rank = folder, images, rank
        self._missing: set[str] = set()  # shards without an output before the run
        self._is_local = isinstance(folder, Path) and isinstance(images.path, Path)

    def require_same(self, outputs: Mapping[str, AnyPath], remedy: str) -> None:
        """Raise ValueError if the tar of a shard with an existing output has changed; `outputs` are by shard."""
        recorded = self._read() if self._is_local else {}
        present = existing_paths(outputs.values()) if recorded else set()
        self._missing = {shard for shard, output in outputs.items() if output not in present}
        verified = False
        for shard, (digest, written) in recorded.items():
            tar = self.images.tar(shard)
            if shard not in outputs or outputs[shard] not in present or not _is_newer(tar, written):
                continue
            if _tar_digest(tar) != digest:
                raise ValueError(f"{tar} has changed since {outputs[shard]} was made from it; {remedy}.")
            verified = True
        if verified:  # copied, or touched: need not be read next time
            for path in self._files():
                os.utime(path)

    def add(self, outputs: Mapping[str, AnyPath]) -> None:
        """Record the tars of the existing outputs that have no record, or were missing in `require_same`."""
        if not self._is_local:
            return
        recorded, present = self._read(), existing_paths(outputs.values())
        unrecorded = self._missing | (set(outputs) - set(recorded))
        new = [shard for shard, output in outputs.items() if output in present and shard in unrecorded]
        own = self.folder / f".tars-{self.rank}.json"
        digests = json.loads(own.read_text()) if own.exists() else {}
        digests |= {shard: _tar_digest(self.images.tar(shard)) for shard in new}
        digests = {shard: digest for shard, digest in sorted(digests.items()) if outputs.get(shard) in present}
        if new:
            write_json(own, digests)

    def _files(self) -> Iterator[Path]:
        return Path(str(self.folder)).glob(".tars-*.json")

    def _read(self) -> dict[str, tuple[str, int]]:
        """Return the digest of each shard's tar, and the time of the record in nanoseconds."""
        recorded: dict[str, tuple[str, int]] = {}
        for path in self._files():
            written = path.stat().st_mtime_ns
            recorded |= {shard: (digest, written) for shard, digest in json.loads(path.read_text()).items()}
        return recorded


def _is_newer(tar: AnyPath, written: int) -> bool:
    try:
        status = os.stat(str(tar))
    except FileNotFoundError:
        return False  # named when it is read
    return max(status.st_mtime_ns, status.st_ctime_ns) > written


def _tar_digest(tar: AnyPath) -> str:
    """Return a digest of the names and sizes of a tar's members, and of its texts."""
    digest = hashlib.sha256()
    with open_read(tar) as file:
        for member in list(walk_tar(file, [])):
            digest.update(f"{member.name}\0{member.size}\n".encode("utf-8", "surrogateescape"))
            if member.name.lower().endswith(TEXT_SUFFIXES) and member.size <= MAX_TEXT_BYTES:
                file.seek(member.offset)
                digest.update(file.read(member.size))
    return digest.hexdigest()[:16]
