"""Passes over the pictures of shards: a stage pulls batches, and each picture is decoded once.

    with reader.open(shard, prepare, next_shard=worker.next_shard, cores=worker.cores) as pictures:
        for batch in pictures.batches(32):
            table.add(batch.keys, model(batch.inputs))

Meanwhile the next shard is read ahead. If the engine then runs another shard, those pictures are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from capfilt.pictures.decode import MAX_PIXELS
from capfilt.pictures.read_ahead import PreparedPicture, ReadAhead, decode_threads
from capfilt.shards.input_check import input_name
from capfilt.shards.shard_set import ShardSet

Prepare = Callable[[Image.Image], Any]

NOT_IN_TAR = "not_in_tar"
# Reasons of `read_samples` for a picture that the tar does not hold whole.
INCOMPLETE = ("no_picture", "truncated_tar")


@dataclass(frozen=True)
class PrepareEach:
    """Prepares a picture for several models; equal to another one with the same functions."""

    functions: tuple[Prepare, ...]

    def __call__(self, image: Image.Image) -> list[Any]:
        return [function(image) for function in self.functions]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures in the order of their tar, undecodable ones included."""

    pictures: list[PreparedPicture[Any]]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def keys(self) -> list[str]:
        """Keys of the decoded pictures."""
        return [picture.key for picture in self.pictures if picture.error is None]

    @property
    def inputs(self) -> list[Any]:
        """Results of `prepare` for the decoded pictures."""
        return [picture.input for picture in self.pictures if picture.error is None]

    def select(self, function: int) -> PictureBatch:
        """Return the batch with the inputs of one function of `PrepareEach`."""
        return PictureBatch(
            [
                replace(picture, input=None if picture.input is None else picture.input[function])
                for picture in self.pictures
            ]
        )


class ShardPass:
    """One pass over the pictures of a shard; `read_stored_keys` returns those that its own table lists as stored."""

    def __init__(self, pictures: ReadAhead[Any], read_stored_keys: Callable[[], Iterable[str]]) -> None:
        self._pictures, self._read_stored_keys = pictures, read_stored_keys

    def batches(self, size: int) -> Iterator[PictureBatch]:
        """Yield batches with `size` decoded pictures each, fewer in the last one.

        Pictures that are not in the tar, although its table lists them, come last.
        """
        batch: list[PreparedPicture[Any]] = []
        decoded = 0
        errors: dict[str, str | None] = {}
        for picture in self._pictures:
            errors[picture.key] = picture.error
            batch.append(picture)
            decoded += picture.error is None
            if decoded == size:
                yield PictureBatch(batch)
                batch, decoded = [], 0
        batch += self._find_missing(errors)
        if batch:
            yield PictureBatch(batch)

    def _find_missing(self, errors: Mapping[str, str | None]) -> list[PreparedPicture[Any]]:
        """Return the stored pictures that are not in the tar, and count them with those that are cut short.

        `errors` has the keys of the tar. A table without any of them belongs to another tar.
        """
        stored = list(self._read_stored_keys())
        if errors and errors.keys().isdisjoint(stored):
            return []
        absent = [key for key in stored if key not in errors]
        incomplete = sum(errors.get(key) in INCOMPLETE for key in stored)
        if absent:
            names = ("pictures", "undecodable", f"undecodable/{NOT_IN_TAR}")
            self._pictures.counts.update(dict.fromkeys(names, len(absent)))
        if absent or incomplete:
            self._pictures.counts["missing"] += len(absent) + incomplete
        return [PreparedPicture(key, None, None, NOT_IN_TAR) for key in absent]

    @property
    def counts(self) -> Mapping[str, int]:
        """Pictures, undecodable pictures and problems of the tar, by reason; complete after the last batch.

        `missing` counts the pictures that the shard's table lists as stored and that the tar does not hold whole.
        """
        return self._pictures.counts

    @property
    def inputs(self) -> dict[str, str]:
        """The digest of the tar for the footer of a table, complete after the last batch."""
        return {input_name(self._pictures.tar): str(self._pictures.digest)}

    def times(self) -> dict[str, int]:
        """Return the milliseconds of the pass, in total and waiting, see `ReadAhead.times`."""
        return self._pictures.times()


class PictureReader:
    """Opens the shards of `images` one after the other, in one worker, and reads the next one ahead.

    At most `ahead` pictures of all shards are read and not yet in a batch.
    """

    def __init__(self, images: ShardSet, ahead: int) -> None:
        self.images, self.ahead = images, ahead
        self._max_pixels = max(MAX_PIXELS, images.max_pixels() or 0)
        # the next shard, or the current one if none follows
        self._latest: ReadAhead[Any] | None = None

    @contextmanager
    def open(
        self, shard: str, prepare: Prepare, *, next_shard: str | None = None, cores: int = 1
    ) -> Iterator[ShardPass]:
        """Open a shard for one pass, with up to `cores` decoding threads.

        `next_shard` is read ahead from the end of this one on. The next `open` uses these pictures if its shard and
        `prepare` are the same, and drops them otherwise. Write the output inside the block: an error ends all reading.
        """
        try:
            pictures = self._take(shard, prepare, cores)
            if next_shard is not None:
                self._latest = pictures.prefetch(self.images.tar(next_shard))
            yield ShardPass(pictures, lambda: self.images.stored_keys(shard))
            if self._latest is pictures:  # no next shard
                self.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all reading."""
        latest, self._latest = self._latest, None
        if latest is not None:
            latest.close()

    def __del__(self) -> None:
        # for a run that is interrupted between two shards
        self.close()

    def _take(self, shard: str, prepare: Prepare, cores: int) -> ReadAhead[Any]:
        """Return the pictures of a shard, read ahead or new."""
        tar = self.images.tar(shard)
        if self._latest is None or (self._latest.tar, self._latest.prepare) != (tar, prepare):
            self.close()
            threads = decode_threads(cores)
            self._latest = ReadAhead(tar, prepare, self.ahead, threads, self._max_pixels)
        return self._latest
