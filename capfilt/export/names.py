"""Names of exported pictures: keys that are unique in the export, and file names that every file system can hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from itertools import pairwise
from pathlib import PurePosixPath
from unicodedata import normalize

MAX_NAME_BYTES = 200  # of a part of a path; file systems hold 255, and temporary files have a suffix
MAX_PATH_BYTES = 800
# Device names of Windows, with any suffix.
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
NOT_IN_NAMES = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f\ud800-\udfff]')


def key_prefixes(shards: Iterable[str]) -> dict[str, str]:
    """Return for each shard what its keys begin with, so that no two pictures of the export have the same key.

    It is the name of the shard, without dots, at which webdataset would end the key. If such names could give equal
    keys, as `a` with the key `b_c` and `a_b` with the key `c`, it is the number of the shard.
    """
    prefixes = {shard: f"{shard.replace('.', '_')}_" for shard in shards}
    ordered = sorted(prefixes.values())
    if any(later.startswith(earlier) for earlier, later in pairwise(ordered)):
        return {shard: f"{number:05d}_" for number, shard in enumerate(sorted(prefixes))}
    return prefixes


class FileNames:
    """The file names of the pictures in one folder, each used once."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._folders: set[str] = set()

    def choose(self, key: str, suffix: str) -> str:
        """Return the file name of a picture: its key, numbered if used, or the hash of a key that is no file name.

        Names that differ in case or Unicode form only are one file on macOS.
        """
        folders = {_fold(str(folder)) for folder in PurePosixPath(key).parents}
        if not _is_portable(key) or not self._used.isdisjoint(folders):
            key = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        name, number = f"{key}.{suffix}", 1
        while _fold(name) in self._used or _fold(name) in self._folders:
            number += 1
            name = f"{key}-{number}.{suffix}"
        self._used.add(_fold(name))
        self._folders.update(_fold(str(folder)) for folder in PurePosixPath(name).parents)
        return name


def _fold(name: str) -> str:
    return normalize("NFC", name.casefold())


def _is_portable(key: str) -> bool:
    """Return whether a key is a relative path that file systems of Linux, macOS and Windows can hold."""
    parts = key.split("/")
    return len(key.encode("utf-8", "surrogatepass")) <= MAX_PATH_BYTES and not any(
        part in ("", ".", "..")
        or part.endswith((" ", "."))
        or len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
        or NOT_IN_NAMES.search(part)
        or RESERVED.fullmatch(part)
        for part in parts
    )
