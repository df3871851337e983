"""The training stream: one or several data sets as an endless, seeded, resumable sequence of samples.

`stream.sample(n)` is the n-th sample of training; each of its parts is a function of (seed, n) alone:

    n -> data set, position in it   a repeating schedule gives every batch the same share of each      (Mixture)
      -> epoch, shard, row          shards shuffled per epoch, rows shuffled in windows of shards      (Shuffle)
      -> text and pixels            drawn from (seed, epoch, key) and from (seed, n)                   (Stream)

So a run resumes at any n, any number of workers gives the same order, and ranks take their slices of a batch without
communication. A row is a picture; each epoch draws one of its texts.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blipcore.data.annotation_datasets import AnnotationDataset
from blipcore.data.dataset import DatasetEntry, Sample, ShardedDataset
from blipcore.data.shard_datasets import FilteredDataset, open_dataset
from blipcore.data.shuffle import Mixture, Shuffle, hash_index
from blipcore.data.transforms import Transform, load_image
from blipcore.io.storage import to_path
from blipcore.io.text_mixture import draw, hash_fraction

WINDOW = 8  # shards shuffled together; memory holds their keys and texts
MAX_REPLACEMENTS = 1000  # unreadable pictures in a row, after which the data set counts as broken
MAX_PROBLEMS = 10_000  # names of unreadable pictures kept


class UnreadablePictureError(Exception):
    """A picture that is missing or damaged: its `name` and the `reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Stream:
    """Samples of one or several data sets by position.

    A sample is {"image", "text", "key", "image_id", "dataset", "epoch"} and the `extra` of its entry. The image is the
    result of `transform`, or for pairs two of them stacked. `image_id` is an integer, equal for equal pictures of one
    data set, never for pictures of different ones.
    """

    def __init__(
        self,
        specs: Sequence[str],
        transform: Transform,
        seed: int = 42,
        image_root: str | Path | None = None,
        window: int = WINDOW,
        opener: Callable[[Any, str | Path | None], ShardedDataset] = open_dataset,
    ) -> None:
        if not specs:
            raise ValueError("Give at least one data set to train on.")
        paths, weights = zip(*map(parse_spec, specs), strict=True)
        if None in weights and any(weights):
            raise ValueError(
                f"Give every data set a weight or none: {specs[weights.index(None)]} has none, and would count by its "
                "number of pictures."
            )
        self.datasets = [opener(to_path(path), image_root) for path in paths]
        sizes = [sum(dataset.counts) for dataset in self.datasets]
        self.seed, self.transform = seed, transform
        self.problems: dict[str, str] = {}  # unreadable pictures and shards: name -> reason
        self._new_problems: dict[str, str] = {}
        self._length = sum(sizes)
        self._mixture = Mixture([weight or Fraction(size) for weight, size in zip(weights, sizes, strict=True)])
        self._shuffles = [Shuffle(dataset.counts, (seed, i), window) for i, dataset in enumerate(self.datasets)]
        self._window = window
        self._windows: dict[int, tuple[int, int]] = {}  # data set -> the window last read from
        self._load = self._cached_load()

    def __len__(self) -> int:
        """Return the number of pictures of all data sets."""
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        position = 0
        while True:
            yield self.sample(position)
            position += 1

    def sample(self, position: int) -> Sample:
        """Return the sample at a position; an unreadable picture is replaced by the next one of its data set.

        Raises ValueError after MAX_REPLACEMENTS unreadable pictures in a row.
        """
        index, row = self._mixture.locate(position)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self._read(index, row + attempt, position)
            except UnreadablePictureError as error:
                problem = error
                self._add_problem(error.name, error.reason)
        raise ValueError(
            f"{MAX_REPLACEMENTS} pictures in a row of {self.datasets[index].name} cannot be read, the last: {problem}."
        )

    def check_pictures(self) -> None:
        """Look for the pictures of annotations; raise ValueError if a file has none, record those that are missing."""
        for dataset in self.datasets:
            if isinstance(dataset, AnnotationDataset):
                dataset.check_pictures()

    def pop_problems(self) -> dict[str, str]:
        """Return the problems (name -> reason) met since the last call; `problems` keeps them all."""
        for dataset in self.datasets:
            for name, reason in dataset.problems.items():
                self._add_problem(name, reason)
        problems, self._new_problems = self._new_problems, {}
        return problems

    @property
    def notes(self) -> list[str]:
        """Lines on the texts that are drawn, for data sets with a mixture."""
        filtered = (dataset for dataset in self.datasets if isinstance(dataset, FilteredDataset))
        return [f"{dataset.name}: {dataset.note}" for dataset in filtered if dataset.note]

    def _add_problem(self, name: str, reason: str) -> None:
        if name not in self.problems and len(self.problems) < MAX_PROBLEMS:
            self.problems[name] = self._new_problems[name] = reason

    def _read(self, index: int, row: int, position: int) -> Sample:
        """Read row `row` of the shuffled data set `index` as the sample of a position."""
        dataset, shuffle = self.datasets[index], self._shuffles[index]
        location, window = shuffle.locate(row), shuffle.window_at(row)
        if self._windows.get(index) != window:
            self._windows[index] = window
            dataset.prefetch(shuffle.upcoming_shards(row))
        entry = self._load(index, location.shard)[location.row]
        rng = random.Random(f"{self.seed}/{position}")
        image = self._image(dataset, location.shard, entry, rng)
        if entry.second is not None:
            image = torch.stack([image, self._image(dataset, location.shard, entry.second, rng)])
        return {
            "image": image,
            "text": _draw_text(entry, self.seed, location.epoch),
            "key": entry.key,
            "image_id": index << 48 | entry.image_id,
            "dataset": dataset.name,
            "epoch": location.epoch,
            **entry.extra,
        }

    def _image(self, dataset: ShardedDataset, shard: int, entry: DatasetEntry, rng: random.Random) -> Tensor:
        try:
            image = load_image(dataset.read(shard, entry))
        except OSError as error:
            raise UnreadablePictureError(dataset.describe(shard, entry), str(error)) from error
        return self.transform(image, rng)

    def _cached_load(self) -> Callable[[int, int], list[DatasetEntry]]:
        @lru_cache(maxsize=self._window * len(self.datasets))
        def load(index: int, shard: int) -> list[DatasetEntry]:
            dataset = self.datasets[index]
            entries = dataset.load(shard)
            if len(entries) != dataset.counts[shard]:
                raise ValueError(
                    f"{dataset.name} has changed since it was opened: its part {shard} held {dataset.counts[shard]} "
                    f"pictures to train on, and now holds {len(entries)}. Restore it and run the same command again."
                )
            return entries

        return load

    # A stream is pickled for data workers, without its cache.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_load"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load = self._cached_load()


def _draw_text(entry: DatasetEntry, seed: int, epoch: int) -> str:
    """Return one text of an entry, the same for a seed, an epoch and a key."""
    if not entry.probabilities:
        return entry.texts[hash_index(len(entry.texts), seed, epoch, entry.key)]
    return entry.texts[draw(entry.probabilities, hash_fraction(seed, epoch, entry.key))]


def parse_spec(spec: str) -> tuple[str, Fraction | None]:
    """Split "path=weight" at the last "=" followed by a number; an existing path of that name has no weight."""
    path, equals, number = spec.rpartition("=")
    if not equals:
        return spec, None
    try:
        weight = Fraction(number)
    except (ValueError, ZeroDivisionError):
        return spec, None
    if to_path(spec).exists():
        return spec, None
    if weight <= 0:
        raise ValueError(f"The weight of a data set must be above 0, not {number} as in {spec}.")
    return path, weight
