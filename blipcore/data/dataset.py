"""The interface of a dataset to train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

Sample = dict[str, Any]


class DatasetEntry(NamedTuple):
    """A picture, or for NLVR2 a pair of pictures, and the texts of which one is drawn."""

    key: str
    texts: tuple[str, ...]
    image_id: int  # equal for equal pictures of a dataset
    second: DatasetEntry | None = None  # the other picture of a pair
    extra: Mapping[str, Any] = MappingProxyType({})  # further values that a task needs in the sample
    probabilities: tuple[float, ...] = ()  # of the texts; empty: all alike


class ShardedDataset(Protocol):
    """A dataset whose entries are loaded shard by shard."""

    name: str
    counts: list[int]  # entries per shard
    problems: dict[str, str]  # file -> its defect

    def load(self, shard: int) -> list[DatasetEntry]:
        """Return the entries of a shard, in the order of its file."""
        ...

    def read(self, shard: int, entry: DatasetEntry) -> bytes:
        """Return the encoded picture of an entry; raises OSError if it cannot be read."""
        ...

    def describe(self, shard: int, entry: DatasetEntry) -> str:
        """Return the name of a picture for messages."""
        ...

    def location(self, shard: int, entry: DatasetEntry) -> tuple[str, str]:
        """Return the tar of a picture and its key in it, or "" and its absolute file."""
        ...

    def prefetch(self, shards: Iterable[int]) -> None:
        """Start to download the pictures of these shards."""
        ...


class SampleStream(Protocol):
    """An endless sequence of training samples by position, such as `Stream`."""

    def __len__(self) -> int:
        """Return the number of pictures of an epoch."""
        ...

    @property
    def notes(self) -> list[str]:
        """Lines to print before training."""
        ...

    def sample(self, position: int) -> Sample:
        """Return the sample at a position, always the same."""
        ...

    def pop_problems(self) -> dict[str, str]:
        """Return the problems (name -> reason) met since the last call."""
        ...


def stable_id(key: str) -> int:
    """Return a 48-bit integer that is the same for a key in every run."""
    return int.from_bytes(blake2b(key.encode(), digest_size=6).digest(), "big")
