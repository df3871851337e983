"""One pass over the pictures of a shard, for everyone who looks at them: each is read and decoded once.

In: a tar and viewers, such as the captions and the scores of that shard. Out: what each has written, and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from PIL import Image

from capfilt import engine
from capfilt.readahead import ReadAhead, Ready, decode_threads
from capfilt.storage import Place


class Viewer(Protocol):
    """Makes one table of a shard while its pictures go by."""

    def prepare(self, image: Image.Image) -> Any:
        """What `see` needs of an RGB picture; called from reading threads, ahead of the model."""

    def see(self, batch: Sequence[Ready[Any]]) -> None:
        """Look at some pictures, in the tar's order; those that could not be decoded are among them."""

    def close(self, pictures: Mapping[str, int]) -> dict[str, int]:
        """Write the table, with what became of the pictures in its footer; returns its counts."""


def look(tar: Place, viewers: Sequence[Viewer], batch_size: int) -> dict[str, int]:
    """Show all pictures of a tar to each viewer, in batches; the tables are written in the viewers' order."""
    pictures = ReadAhead(
        tar,
        lambda image: [viewer.prepare(image) for viewer in viewers],
        ahead=2 * batch_size,
        threads=decode_threads(engine.own_cores()),
    )
    for batch in pictures.batches(batch_size):
        for place, viewer in enumerate(viewers):
            viewer.see([replace(of, input=None if of.input is None else of.input[place]) for of in batch])
        engine.advance(len(batch))
    counts: dict[str, int] = {}
    for viewer in viewers:
        counts |= viewer.close(pictures.counts)
    return counts | pictures.times()
