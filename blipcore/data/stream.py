"""The training stream: data sets with weights -> an endless, seeded, resumable sequence of samples.

In: DATASET specs ("path" or "path=weight") and a transform. Out: `stream.sample(n)`, the n-th sample of training, and a
`DataLoader` of collated batches. The unit is the picture; one of its texts is drawn anew every epoch.

    n -> source and position in it   a repeating schedule gives every batch the same share of each source   (Mixture)
      -> epoch, shard, row           shards shuffled by epoch, rows shuffled in windows of several shards   (Shuffle)
      -> text and pixels             both drawn from (seed, epoch or n, key)                                (Stream)

Every step is a function of (seed, n) alone. So resuming is starting at n, several workers give the order of one, and
ranks take their slice of each global batch without talking to each other.
"""

import math
import os
import random
import signal
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from blipcore import distributed
from blipcore.data.places import Folder, is_remote
from blipcore.data.sources import Picture, Source, open_source
from blipcore.data.transforms import Transform, load_image

WINDOW = 8  # shards whose pictures are shuffled together; their keys and texts are what memory holds
MAX_PERIOD = 1 << 16  # slots of the mixing schedule: shares are exact to 1/65536
MAX_REPLACEMENTS = 1000  # unreadable pictures in a row after which the data set counts as broken
MAX_PROBLEMS = 10_000  # names of unreadable pictures that are remembered

Sample = dict[str, Any]


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

    def loader(
        self, collate: Callable[[list[Sample]], Any], batch_size: int, start: int, batches: int, workers: int = 0
    ) -> DataLoader:
        """This rank's next `batches` batches (collated, with the problems met) from position `start` of the stream.

        Their order does not depend on the number of workers. A batch of every rank together is a stretch of the stream.
        In the place of a batch that cannot be had stands the error: raised in a worker it would come with a traceback.
        """
        return DataLoader(
            _Batches(self, collate, batch_size, start),
            batch_size=None,
            sampler=range(batches),
            num_workers=workers,
            collate_fn=_as_is,
            worker_init_fn=_undisturbed,
            generator=torch.Generator(),  # so that starting it draws nothing from the generator that dropout uses
        )

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


def draw(choices: int, *what: object) -> int:
    """A number below `choices` that depends on `what` alone (not on any generator's state)."""
    digest = blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % choices


class Mixture:
    """Smooth weighted round robin as a closed form: which source, and which of its positions, stands at position n.

    Each slot of a period goes to the source that lags most behind its share. Any run of samples then holds the share of
    each source to within one sample for two sources, and to within two for any number.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        turns = whole_shares(weights, MAX_PERIOD)
        self.turns, self.period = turns, sum(turns)
        shares, taken = np.array(turns), np.zeros(len(turns), dtype=np.int64)
        self._source = np.empty(self.period, dtype=np.int16)
        self._place = np.empty(self.period, dtype=np.int32)
        lag = np.zeros(len(turns), dtype=np.int64)  # slots owed to each source, times the period
        for slot in range(self.period):
            lag += shares
            source = int(lag.argmax())
            lag[source] -= self.period
            self._source[slot], self._place[slot] = source, taken[source]
            taken[source] += 1

    def locate(self, position: int) -> tuple[int, int]:
        """(source, position in that source)."""
        rounds, slot = divmod(position, self.period)
        source = int(self._source[slot])
        return source, rounds * self.turns[source] + int(self._place[slot])


def whole_shares(weights: Sequence[Fraction], limit: int) -> list[int]:
    """Small whole numbers in the proportion of the weights: exact when they add up to `limit` or less, else rounded."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    exact = [int(weight * scale) for weight in weights]
    exact = [number // math.gcd(*exact) for number in exact]
    if sum(exact) <= limit:
        return exact
    return [max(1, round(Fraction(number * limit, sum(exact)))) for number in exact]


class Place(NamedTuple):
    """Where a source position leads: the epoch it belongs to, the shard, and the row in the shard."""

    epoch: int
    shard: int
    row: int


class Shuffle:
    """Shuffles a source without holding it: shards by epoch, then the rows of `window` neighbouring shards together."""

    def __init__(self, counts: Sequence[int], seed: Sequence[int], window: int) -> None:
        self.counts = np.array(counts, dtype=np.int64)
        self.seed, self.window = tuple(seed), window
        self.total = int(self.counts.sum())
        self._epoch: tuple[int, np.ndarray, list[int]] = (-1, self.counts, [])
        self._rows: tuple[int, int, np.ndarray, np.ndarray] = (-1, -1, self.counts, self.counts)

    def locate(self, position: int) -> Place:
        """The place of the picture at a position of the endless shuffled sequence."""
        epoch, offset = divmod(position, self.total)
        shards, starts = self._order(epoch)
        number = bisect_right(starts, offset) - 1
        order, ends = self._window_order(epoch, number, shards)
        row = int(order[offset - starts[number]])
        which = int(np.searchsorted(ends, row, side="right"))
        before = int(ends[which - 1]) if which else 0
        return Place(epoch, int(shards[number * self.window + which]), row - before)

    def window_of(self, position: int) -> tuple[int, int]:
        """The epoch and the window that a position lies in."""
        epoch, offset = divmod(position, self.total)
        return epoch, bisect_right(self._order(epoch)[1], offset) - 1

    def coming(self, position: int) -> list[int]:
        """The shards of the window of a position, then those of the next one."""
        epoch, number = self.window_of(position)
        shards = self._order(epoch)[0][number * self.window : (number + 2) * self.window].tolist()
        if (number + 1) * self.window >= len(self.counts):
            shards += self._order(epoch + 1)[0][: self.window].tolist()
        return shards

    def _order(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """The shards in this epoch's order and the position at which each window starts."""
        if self._epoch[0] != epoch:
            shards = np.random.default_rng([*self.seed, epoch]).permutation(len(self.counts))
            before = np.concatenate([[0], np.cumsum(self.counts[shards])])
            self._epoch = epoch, shards, before[:-1][:: self.window].tolist()
        return self._epoch[1], self._epoch[2]

    def _window_order(self, epoch: int, number: int, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a window in their shuffled order, and where each of its shards ends before shuffling."""
        if self._rows[:2] != (epoch, number):
            sizes = self.counts[shards[number * self.window : (number + 1) * self.window]]
            order = np.random.default_rng([*self.seed, epoch, number]).permutation(int(sizes.sum()))
            self._rows = epoch, number, order, np.cumsum(sizes)
        return self._rows[2], self._rows[3]


class _Batches(Dataset):
    """Batch i of this rank, as a map: a worker that is asked for batch i needs to know nothing of the others."""

    def __init__(self, stream: Stream, collate: Callable[[list[Sample]], Any], batch_size: int, start: int) -> None:
        self.stream, self.collate, self.batch_size, self.start = stream, collate, batch_size, start
        self.rank, self.ranks = distributed.rank(), distributed.world_size()

    def __getitem__(self, index: int) -> tuple[Any, dict[str, str]]:
        first = self.start + (index * self.ranks + self.rank) * self.batch_size
        try:
            batch = self.collate([self.stream.sample(first + row) for row in range(self.batch_size)])
        except (ValueError, OSError) as error:
            batch = error
        return batch, self.stream.take_problems()


def _as_is(item: Any) -> Any:
    return item


def _undisturbed(worker: int) -> None:
    """Leave signals to the process that trains: it saves and ends its workers, and Slurm and Ctrl-C tell all of them.

    A worker that such a signal kills would end the training process before it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # only this tells who sends a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()
    else:  # macOS: out of reach of what goes to the group (but not of Slurm, which names every process)
        os.setpgid(0, 0)


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
