"""Decontamination: finds pictures that are copies of evaluation pictures, exact or near."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from blipcore.io.samples import PICTURE_SUFFIXES
from capfilt.pictures.decode import DecodeError, difference_hash
from capfilt.pictures.look_alikes import LookAlikes


class EvaluationPictures:
    """The pictures below some folders: `image in pictures` is True for the bytes of a copy.

    Exact copies are found by SHA-256, near copies by difference hash. Pictures of nearly one colour have similar
    difference hashes and are compared by SHA-256 only.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        hashes = dict(pair for folder in folders for pair in _hash_pictures(Path(folder)))
        self.digests, self.look_alikes = set(hashes), LookAlikes(hashes.values())

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, image: bytes) -> bool:
        if not self.digests:
            return False
        if hashlib.sha256(image).digest() in self.digests:
            return True
        try:
            return difference_hash(image) in self.look_alikes
        except DecodeError:
            # It could be decoded when it was scored, so it has changed since and is no copy.
            return False


def _hash_pictures(folder: Path) -> Iterator[tuple[bytes, str]]:
    """Yield SHA-256 and difference hash of each picture that can be decoded."""
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder of pictures at {folder}.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lstrip(".").lower() in PICTURE_SUFFIXES and path.is_file():
            data = path.read_bytes()
            with suppress(DecodeError):
                yield hashlib.sha256(data).digest(), difference_hash(data)
