"""Pictures that an export must leave out: exact copies and near copies of a test set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from blipcore.io.samples import PICTURE_SUFFIXES
from capfilt.pictures.decode import DecodeError, difference_hash
from capfilt.pictures.look_alikes import LookAlikes


class Forbidden:
    """Pictures of evaluation sets, by their bytes and by how they look: `image in forbidden`.

    Of a picture that is nearly all one colour the difference hash says too little: it is known by its bytes alone.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        looks = dict(look for folder in folders for look in _looks_below(Path(folder)))
        self.digests, self.alikes = set(looks), LookAlikes(looks.values())

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, image: bytes) -> bool:
        if not self.digests:
            return False
        if hashlib.sha256(image).digest() in self.digests:
            return True
        try:
            return difference_hash(image) in self.alikes
        except DecodeError:
            return False  # it was scored, so it could be read: whatever it is, no evaluation set shows it


def _looks_below(folder: Path) -> Iterator[tuple[bytes, str]]:
    """SHA-256 and difference hash of each picture in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder of pictures at {folder}.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lstrip(".").lower() in PICTURE_SUFFIXES and path.is_file():
            with suppress(DecodeError):
                yield hashlib.sha256(data := path.read_bytes()).digest(), difference_hash(data)
