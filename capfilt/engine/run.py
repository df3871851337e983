"""Runs a stage over shards: skip what is done, retry what failed, name what failed again.

A stage is a picklable object; the engine knows its four members and nothing of pictures or models. A shard is the unit
of work, of failure and of resuming, and is done when its output exists. Workers are this process, local processes or
actors on a Ray cluster: their kind, their number and any restart change how long a run takes, never what it writes.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from blipcore.io.storage import existing
from blipcore.io.writing import remove_temporary_files
from capfilt.engine.processes import Processes
from capfilt.engine.progress import Display
from capfilt.engine.threads import Threads
from capfilt.engine.worker import (
    ShardOutcome,
    Stage,
    attempt,
    set_up,
)
from capfilt.errors import EngineError


@dataclass(kw_only=True)
class EngineConfig:
    """Who does the shards; no table depends on it. Configs of stages inherit from it."""

    workers: int = 1  # processes, or Ray actors; with GPUs, one for each is a good start
    device: str = "auto"  # GPUs are dealt round
    engine: Literal["local", "ray"] = "local"
    rank: int = 0  # of `world_size` runs that share the shards, as the tasks of a Slurm array do
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be 0 to world_size - 1, not {self.rank} of {self.world_size}.")

    def share(self, shards: list[str]) -> list[str]:
        """This rank's part of all shards, done or not, so that the parts of the ranks never overlap."""
        return shards[self.rank :: self.world_size]


@dataclass
class Summary:
    """What became of the shards of one run; `counts` sums those of the shards done now."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # shard -> why
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Workers(Protocol):
    """A crew: `processes.Processes`, `threads.Threads`, `on_ray.Actors`."""

    def hire(self, index: int) -> Any: ...

    def give(self, worker: Any, shard: str, upcoming: str | None) -> None: ...

    def listen(self) -> list[tuple[Any, ShardOutcome]]: ...

    def dismiss(self) -> None: ...


def run(
    stage: Stage,
    shards: Iterable[str],
    *,
    workers: int = 1,
    device: str = "auto",
    engine: str = "local",
    retries: int = 1,
    progress: bool = True,
) -> Summary:
    """Run `stage` over `shards` and say what became of each; a shard that fails does not stop the others.

    One local worker runs in this process, as do `threads`, for stages of tables alone. A worker that dies takes only
    its shard with it, which is done again elsewhere at most `retries` times. Raises what `stage.setup` raises,
    OSError when the disk is full, read-only or closed to us, and EngineError when the output folder has gone.
    """
    if engine not in ("local", "ray", "threads"):
        raise ValueError(f"Unknown engine '{engine}'; choose 'local' or 'ray'.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    shards = list(shards)
    outputs = {shard: stage.output(shard) for shard in shards}
    there = existing(outputs.values())  # one listing, however many there are
    todo = [shard for shard, output in outputs.items() if output not in there]
    for folder in {outputs[shard].parent for shard in todo}:
        remove_temporary_files(folder, (outputs[shard].name for shard in todo))
    summary = Summary(skipped=len(shards) - len(todo))
    start = time.monotonic()
    with Display(stage.name, len(shards), done=summary.skipped, shown=progress) as display:
        book = _Book(summary, display, stage, retries)
        if not todo:
            display.say(f"{stage.name}: all {len(shards)} shards are done already.")
        elif workers == 1 and engine != "ray":
            _run_here(stage, todo, device, book)
        else:
            size = min(workers, len(todo))
            _run_with(_crew(engine, stage, device, size), todo, size, book)
    summary.seconds = time.monotonic() - start
    return summary


def _crew(engine: str, stage: Stage, device: str, size: int) -> Workers:
    if engine == "ray":
        from capfilt.engine.ray_actors import Actors

        return Actors(stage, device, size)
    return Threads(stage, device) if engine == "threads" else Processes(stage, device, size)


def _run_here(stage: Stage, todo: list[str], device: str, book: _Book) -> None:
    queue = deque(todo)
    told = set_up(stage, device, 0)
    if told.kind == "raise":
        raise told.value
    while queue:
        shard = queue.popleft()
        if book.settle(shard, attempt(stage, shard, book.tick, queue[0] if queue else None)):
            queue.appendleft(shard)


def _run_with(crew: Workers, todo: list[str], size: int, book: _Book) -> None:
    queue, hired = deque(todo), dict[Any, _Hired]()
    stillborn = 0
    try:
        while queue or any(of.shard for of in hired.values()):
            while len(hired) < size and len(queue) > sum(of.shard is None for of in hired.values()):
                index = min(set(range(size)) - {of.index for of in hired.values()})
                hired[crew.hire(index)] = _Hired(index)
            for worker, of in hired.items():
                if queue and of.ready and of.shard is None:
                    others = {other.upcoming for other in hired.values() if other is not of}
                    of.shard, of.upcoming = _pick(queue, others)
                    queue.remove(of.shard)
                    crew.give(worker, of.shard, of.upcoming)
            for worker, told in crew.listen():
                of = hired[worker]
                if told.kind == "tick":
                    book.tick(told.value, of.index)
                    continue
                if told.kind == "gone":
                    del hired[worker]
                    stillborn += not of.ready
                    if stillborn > size + book.retries:
                        raise EngineError(f"Workers die while they load ({told.value}); try fewer with --workers.")
                elif told.kind == "raise":  # its setup failed or the disk is full: every worker would meet the same
                    raise told.value
                if of.shard is not None and book.settle(of.shard, told, of.index):
                    queue.append(of.shard)
                of.ready, of.shard = True, None
    finally:
        crew.dismiss()


@dataclass
class _Hired:
    index: int
    ready: bool = False  # has loaded its models
    shard: str | None = None  # what it works on
    upcoming: str | None = None  # what it does next unless another, with nothing else to do, has come before it


def _pick(queue: deque[str], expected: set[str | None]) -> tuple[str, str | None]:
    """Two shards of the queue for a worker to do, now and next; those that others expect only where none is left.

    Of these it is the last, whose reader has begun with another one most recently.
    """
    free = [shard for shard in islice(queue, len(expected) + 2) if shard not in expected]
    return (free[0], free[1] if len(free) > 1 else None) if free else (queue[-1], None)


class _Book:
    """Keeps the summary and moves the display; pictures told by `advance` are not counted again when a shard ends."""

    def __init__(self, summary: Summary, display: Display, stage: Stage, retries: int):
        self.summary, self.display, self.stage, self.retries = summary, display, stage, retries
        self.failures: Counter[str] = Counter()  # of a shard
        self.ticked: Counter[int] = Counter()  # pictures of the shard in hand, by worker

    def tick(self, pictures: int, worker: int = 0) -> None:
        self.ticked[worker] += pictures
        self.display.advance(pictures=pictures)

    def settle(self, shard: str, told: ShardOutcome, worker: int = 0) -> bool:
        """Write down what became of a shard; whether it is to be done again."""
        ticked = self.ticked.pop(worker, 0)
        if told.kind == "raise":
            raise told.value
        if told.kind == "done":
            self.summary.done += 1
            for name, count in told.value.items():
                self.summary.counts[name] = self.summary.counts.get(name, 0) + count
            self.display.advance(1, max(0, told.value.get("pictures", 0) - ticked))
            return False
        self._require_folder(shard)
        why = told.value if told.kind == "failed" else f"its worker died ({told.value})"
        self.failures[shard] += 1
        if self.failures[shard] <= self.retries:
            return True
        self.summary.failed[shard] = why
        self.display.advance(1)
        self.display.say(f"shard {shard} failed: {why}")
        return False

    def _require_folder(self, shard: str) -> None:
        folder = self.stage.output(shard).parent
        if isinstance(folder, Path) and not folder.exists():
            raise EngineError(f"{folder} was removed while {self.stage.name} was writing it; run the command again.")
