"""The training stream: data sets with weights -> an endless, seeded, resumable sequence of samples.

In: DATASET specs ("path" or "path=weight") and a transform. Out: `stream.sample(n)`, the n-th sample of training, and a
`DataLoader` of collated batches. The unit is the picture; one of its texts is drawn anew every epoch.

    n -> source and position in it   a repeating schedule gives every batch the same share of each source   (Mixture)
      -> epoch, shard, row           shards shuffled by epoch, rows shuffled in windows of several shards   (Shuffle)
      -> text and pixels             both drawn from (seed, epoch or n, key)                                (Stream)

Every step is a function of (seed, n) alone. So resuming is starting at n, several workers give the order of one, and
ranks take their slice of each global batch without talking to each other.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blipcore.data.shuffle import Mixture, Shuffle, draw
from blipcore.data.source import Picture, Sample, Source
from blipcore.data.sources import open_source
from blipcore.data.transforms import Transform, load_image
from blipcore.io.tar_cache import Folder, is_remote

WINDOW = 8  # shards whose pictures are shuffled together; their keys and texts are what memory holds
MAX_REPLACEMENTS = 1000  # unreadable pictures in a row after which the data set counts as broken
MAX_PROBLEMS = 10_000  # names of unreadable pictures that are remembered


class UnreadablePictureError(Exception):
    """One picture cannot be had: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Stream:
    """Samples {"image", "text", "key", "image_id", "source", "epoch"} by position, from one or several data sets.

    `image_id` is a stable number from the picture's key, or what its annotation file calls it; equal pictures of one
    data set have equal ids, those of different data sets never do. A source (see `opener`) may give pairs, which become
    one stacked "image", and add to a picture what a task wants in the sample.
    """

    def __init__(
        self,
        specs: Sequence[str],
        transform: Transform,
        seed: int = 42,
        image_root: str | Path | None = None,
        window: int = WINDOW,
        opener: Callable[[Any, str | Path | None], Source] = open_source,
    ) -> None:
        if not specs:
            raise ValueError("no data set was given to train on")
        paths, weights = zip(*map(parse_spec, specs), strict=True)
        if None in weights and any(weights):
            raise ValueError(
                f"give every data set a weight or none: {specs[weights.index(None)]} has none and would count by its "
                "pictures, beside which a share is next to nothing"
            )
        self.sources: list[Source] = [opener(path if is_remote(path) else Path(path), image_root) for path in paths]
        sizes = [sum(source.counts) for source in self.sources]
        self.seed, self.transform = seed, transform
        self.problems: dict[str, str] = {}
        self._fresh: dict[str, str] = {}
        self._length = sum(sizes)
        self._mixture = Mixture([weight or Fraction(size) for weight, size in zip(weights, sizes, strict=True)])
        self._shuffles = [Shuffle(source.counts, (seed, number), window) for number, source in enumerate(self.sources)]
        self._window = window
        self._windows: dict[int, tuple[int, int]] = {}  # of each source, the one last read from
        self._load = self._cached_load()

    def __len__(self) -> int:
        """Pictures of all data sets together: an epoch of the sum."""
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        """Endless, from position 0."""
        position = 0
        while True:
            yield self.sample(position)
            position += 1

    def sample(self, position: int) -> Sample:
        """The sample at a position; a picture that cannot be read is replaced by the next one of its source."""
        number, place = self._mixture.locate(position)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self._read(number, place + attempt, position)
            except UnreadablePictureError as error:
                problem = error
                self._note(error.name, error.reason)
        raise ValueError(
            f"{MAX_REPLACEMENTS} pictures in a row of {self.sources[number].name} cannot be read, the last: {problem}"
        )

    def take_problems(self) -> dict[str, str]:
        """Problems (name -> reason) met since the last call; `problems` keeps them all."""
        for source in self.sources:
            for name, reason in source.problems.items():
                self._note(name, reason)
        fresh, self._fresh = self._fresh, {}
        return fresh

    def _note(self, name: str, reason: str) -> None:
        if name not in self.problems and len(self.problems) < MAX_PROBLEMS:
            self.problems[name] = self._fresh[name] = reason

    def _read(self, number: int, place: int, position: int) -> Sample:
        source, shuffle = self.sources[number], self._shuffles[number]
        at, window = shuffle.locate(place), shuffle.window_of(place)
        if self._windows.get(number) != window:
            self._windows[number] = window
            source.ahead(shuffle.coming(place))
        picture = self._load(number, at.shard)[at.row]
        rng = random.Random(f"{self.seed}/{position}")
        image = self._pixels(source, at.shard, picture, rng)
        if picture.second is not None:
            image = torch.stack([image, self._pixels(source, at.shard, picture.second, rng)])
        return {
            "image": image,
            "text": picture.texts[draw(len(picture.texts), self.seed, at.epoch, picture.key)],
            "key": picture.key,
            "image_id": number << 48 | picture.image_id,
            "source": source.name,
            "epoch": at.epoch,
            **picture.more,
        }

    def _pixels(self, source: Source, shard: int, picture: Picture, rng: random.Random) -> Tensor:
        try:
            image = load_image(source.read(shard, picture))
        except OSError as error:
            raise UnreadablePictureError(source.where(shard, picture), str(error)) from error
        return self.transform(image, rng)

    def _cached_load(self) -> Callable[[int, int], list[Picture]]:
        @lru_cache(maxsize=self._window * len(self.sources))
        def load(number: int, shard: int) -> list[Picture]:
            return self.sources[number].load(shard)

        return load

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_load"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load = self._cached_load()


def parse_spec(spec: str) -> tuple[str, Fraction | None]:
    """Split "path=weight" at the last "=" that a number follows; a path that exists as it is has no weight."""
    path, equals, number = spec.rpartition("=")
    if not equals:
        return spec, None
    try:
        weight = Fraction(number)
    except (ValueError, ZeroDivisionError):
        return spec, None
    if Folder(spec).exists() if is_remote(spec) else Path(spec).exists():
        return spec, None
    if weight <= 0:
        raise ValueError(f"the weight of a data set must be above 0, but {spec} says {number}")
    return path, weight
