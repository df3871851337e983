"""One pass over the pictures of a shard, for everyone who looks at them: each is read and decoded once.

In: a shard and viewers, such as its captions and its scores. Out: what each has written, and counts. The shard that
the engine says will be next is read meanwhile; where it says wrong, that reading is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from PIL import Image

from capfilt.engine.worker import advance, own_cores, upcoming
from capfilt.pictures.read_ahead import ReadAhead, Ready, decode_threads
from capfilt.shards.shard_set import ShardSet


class Viewer(Protocol):
    """Makes one table of a shard while its pictures go by."""

    prepare: Callable[[Image.Image], Any]  # what `see` needs of a picture; decoding threads call it, ahead of the model

    def see(self, batch: Sequence[Ready[Any]]) -> None:
        """Look at some pictures, in the tar's order; those that could not be decoded are among them."""

    def close(self, pictures: Mapping[str, int]) -> dict[str, int]:
        """Write the table, with what became of the pictures in its footer; returns its counts."""


@dataclass(frozen=True)
class Each:
    """Prepares a picture in several ways; equal to another that does the same."""

    ways: tuple[Callable[[Image.Image], Any], ...]

    def __call__(self, image: Image.Image) -> list[Any]:
        return [way(image) for way in self.ways]


class Look:
    """A worker's passes over shards of `images`, one after the other.

    The upcoming shard's pictures are prepared as those before them; where its viewers want others, they are read anew.
    """

    def __init__(self, images: ShardSet, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size
        self._ahead: ReadAhead[list[Any]] | None = None  # the upcoming shard, or that in hand when it is the last

    def __call__(self, shard: str, begin: Callable[[], Sequence[Viewer]]) -> dict[str, int]:
        """Show all pictures of a shard to the viewers begun, in batches; tables are written in the viewers' order."""
        try:
            viewers = begin()
            pictures = self._pictures(shard, Each(tuple(viewer.prepare for viewer in viewers)))
            for batch in pictures.batches(self.batch_size):
                for place, viewer in enumerate(viewers):
                    viewer.see([replace(of, input=None if of.input is None else of.input[place]) for of in batch])
                advance(len(batch))
            counts: dict[str, int] = {}
            for viewer in viewers:
                counts |= viewer.close(pictures.counts)
            if self._ahead is pictures:  # nothing follows
                self.let_go()
            return counts | pictures.times()
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """End what is being read."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()

    __del__ = let_go  # for a run that is broken off between two shards

    def _pictures(self, shard: str, prepare: Each) -> ReadAhead[list[Any]]:
        """The pictures of a shard, perhaps read already; the upcoming shard is read from where this one ends."""
        tar, following = self.images.tar(shard), upcoming()
        if self._ahead is None or (self._ahead.tar, self._ahead.prepare) != (tar, prepare):
            self.let_go()
            threads = decode_threads(own_cores())
            self._ahead = ReadAhead(tar, prepare, ahead=2 * self.batch_size, threads=threads)
        pictures = self._ahead
        if following is not None:
            self._ahead = pictures.then(self.images.tar(following))
        return pictures
