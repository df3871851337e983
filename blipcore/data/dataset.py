"""The protocol of a data set to train on, and the pictures that it lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

Sample = dict[str, Any]


class DatasetEntry(NamedTuple):
    """A picture's key, the texts one may be drawn from, and an integer equal for equal pictures of a source."""

    key: str
    texts: tuple[str, ...]
    image_id: int
    second: DatasetEntry | None = None  # of a pair
    extra: Mapping[str, Any] = MappingProxyType({})  # what else a task wants in the sample


class ShardedDataset(Protocol):
    """A data set seen as shards of pictures."""

    name: str
    counts: list[int]  # pictures with at least one text, by shard
    problems: dict[str, str]  # what was wrong with whole files: name -> reason

    def load(self, shard: int) -> list[DatasetEntry]:
        """The pictures of a shard, in the order of its file."""
        ...

    def read(self, shard: int, picture: DatasetEntry) -> bytes:
        """The encoded picture; raises OSError when it cannot be had."""
        ...

    def describe(self, shard: int, picture: DatasetEntry) -> str:
        """What to call a picture in a report."""
        ...

    def prefetch(self, shards: Iterable[int]) -> None:
        """Prepare for reading these shards next."""
        ...


def stable_id(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=6).digest(), "big")
