"""Runs a stage over shards: skips finished ones, retries failed ones, reports those that fail again.

The shard is the unit of work, of failure and of resuming; it is done when its output exists. The engine knows a stage
only by its protocol, nothing about pictures or models. Workers are this process, local processes, threads or Ray
actors. Their kind, their number and restarts change the time of a run but never its output.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from blipcore.io.storage import AnyPath, existing_paths
from blipcore.io.writing import remove_temporary_files
from capfilt.engine.processes import ProcessPool
from capfilt.engine.progress import ProgressDisplay
from capfilt.engine.threads import ThreadPool
from capfilt.engine.worker import Progress, ShardOutcome, Stage, StageRunner
from capfilt.errors import EngineError


@dataclass(kw_only=True)
class EngineConfig:
    """The workers of a stage; no output depends on these settings. Configs of stages inherit from it."""

    # processes, or Ray actors; with GPUs, one per GPU is a good start
    workers: int = 1
    # "auto" and "cuda" assign the GPUs to the workers in turn
    device: str = "auto"
    engine: Literal["local", "ray"] = "local"
    # number of this run among `world_size` runs that share the shards, such as tasks of a Slurm array
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be 0 to world_size - 1, not {self.rank} of {self.world_size}.")

    def shards_of_rank(self, shards: list[str]) -> list[str]:
        """Return this rank's part of all shards, done or not; the parts of two ranks never overlap."""
        return shards[self.rank :: self.world_size]


@dataclass
class RunSummary:
    """The result of a run over shards; `counts` are sums over the `done` ones."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # shard -> reason
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class WorkerPool(Protocol):
    """Workers of one kind: `ProcessPool`, `ThreadPool` or `RayPool`."""

    def start(self, index: int) -> Any: ...

    def submit(self, worker: Any, shard: str, next_shard: str | None) -> None: ...

    def wait(self) -> list[tuple[Any, ShardOutcome]]: ...

    def stop(self) -> None: ...


def run_shards(
    stage: Stage,
    shards: Iterable[str],
    *,
    workers: int = 1,
    device: str = "auto",
    engine: str = "local",
    retries: int = 1,
    progress: bool = True,
) -> RunSummary:
    """Run `stage` over the `shards` that have no output yet.

    A failed shard, or one whose worker died, is retried at most `retries` times and does not stop the others. One local
    worker runs in this process. Engine "threads" is for stages that only read and write tables.

    Raises the errors of `stage.setup`, OSError if the disk is full, read-only or denies access, and EngineError if the
    output folder disappears.
    """
    if engine not in ("local", "ray", "threads"):
        raise ValueError(f"Unknown engine '{engine}'; choose 'local' or 'ray'.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    shards = list(shards)
    outputs = {shard: stage.output(shard) for shard in shards}
    existing_outputs = existing_paths(outputs.values())  # one listing of the folder for all shards
    todo = [shard for shard, output in outputs.items() if output not in existing_outputs]
    folders = {outputs[shard].parent for shard in todo}
    for folder in folders:
        remove_temporary_files(folder, (outputs[shard].name for shard in todo))
    summary = RunSummary(skipped=len(shards) - len(todo))
    start = time.monotonic()
    with ProgressDisplay(stage.name, len(shards), done=summary.skipped, shown=progress) as display:
        ledger = _Ledger(summary, display, stage, retries, folders)
        if not todo:
            display.print(f"{stage.name}: all {len(shards)} shards are done already.")
        elif workers == 1 and engine != "ray":
            _run_in_process(stage, todo, device, ledger)
        else:
            size = min(workers, len(todo))
            _run_in_pool(_open_pool(engine, stage, device, size), todo, size, ledger)
    summary.seconds = time.monotonic() - start
    return summary


def _open_pool(engine: str, stage: Stage, device: str, size: int) -> WorkerPool:
    if engine == "ray":
        from capfilt.engine.ray_actors import RayPool

        return RayPool(stage, device, size)
    return ThreadPool(stage, device) if engine == "threads" else ProcessPool(stage, device, size)


def _run_in_process(stage: Stage, todo: list[str], device: str, ledger: _Ledger) -> None:
    queue = deque(todo)
    runner = StageRunner(stage, device, index=0)
    outcome = runner.setup()
    if outcome.kind == "fatal":
        raise outcome.value
    while queue:
        shard = queue.popleft()
        outcome = runner.run(shard, next_shard=queue[0] if queue else None, report=ledger.advance)
        must_retry = ledger.record_outcome(shard, outcome)
        if must_retry:
            queue.appendleft(shard)


@dataclass
class _WorkerState:
    index: int
    is_ready: bool = False  # its models are loaded
    shard: str | None = None  # the current one
    next_shard: str | None = None  # unless an idle worker takes it first


def _run_in_pool(pool: WorkerPool, todo: list[str], size: int, ledger: _Ledger) -> None:
    queue = deque(todo)
    states = dict[Any, _WorkerState]()  # by worker
    deaths_in_setup = 0
    try:
        while queue or any(state.shard for state in states.values()):
            _start_workers(pool, states, size, len(queue))
            _submit_shards(pool, states, queue)
            for worker, outcome in pool.wait():
                state = states[worker]
                if outcome.kind == "progress":
                    ledger.advance(outcome.value, state.index)
                    continue
                if outcome.kind == "fatal":
                    raise outcome.value
                if outcome.kind == "died":
                    del states[worker]
                    deaths_in_setup += not state.is_ready
                    if deaths_in_setup > size + ledger.retries:
                        raise EngineError(
                            f"Workers die while they load their models ({outcome.value}); use fewer --workers."
                        )
                if state.shard is not None:
                    must_retry = ledger.record_outcome(state.shard, outcome, state.index)
                    if must_retry:
                        queue.append(state.shard)
                state.is_ready, state.shard = True, None
    finally:
        pool.stop()


def _start_workers(pool: WorkerPool, states: dict[Any, _WorkerState], size: int, waiting_shards: int) -> None:
    """Start workers, up to `size`, while more shards wait than workers are idle."""
    while len(states) < size and waiting_shards > sum(state.shard is None for state in states.values()):
        index = min(set(range(size)) - {state.index for state in states.values()})
        states[pool.start(index)] = _WorkerState(index)


def _submit_shards(pool: WorkerPool, states: dict[Any, _WorkerState], queue: deque[str]) -> None:
    for worker, state in states.items():
        if queue and state.is_ready and state.shard is None:
            reserved = {other.next_shard for other in states.values() if other is not state}
            state.shard, state.next_shard = pick_shards(queue, reserved)
            queue.remove(state.shard)
            pool.submit(worker, state.shard, state.next_shard)


def pick_shards(queue: deque[str], reserved: set[str | None]) -> tuple[str, str | None]:
    """Return the shard that a worker runs now, and the next one or None.

    Other workers may already read ahead their next shards, `reserved`. One of these is picked only if the queue has no
    other: the last, whose reading began most recently.
    """
    free = [shard for shard in islice(queue, len(reserved) + 2) if shard not in reserved]
    if not free:
        return queue[-1], None
    return free[0], free[1] if len(free) > 1 else None


class _Ledger:
    """Records outcomes in the summary and the display, where each picture counts once."""

    def __init__(
        self, summary: RunSummary, display: ProgressDisplay, stage: Stage, retries: int, folders: Iterable[AnyPath] = ()
    ) -> None:
        """Begin a run that writes to `folders`; a shard that fails after one of them was removed ends the run."""
        self.summary, self.display, self.stage, self.retries = summary, display, stage, retries
        # A stage may create the folder of its outputs with the first shard, so what exists now is watched.
        self.folders = {_existing_ancestor(folder) for folder in folders if isinstance(folder, Path)}
        self.failures: Counter[str] = Counter()  # per shard
        self.reported: Counter[int] = Counter()  # pictures of the current shard, per worker
        self.paid: dict[int, float] = {}  # dollars for the current shard, per worker

    def advance(self, progress: Progress, worker: int = 0) -> None:
        """Count pictures of a shard that is not done yet."""
        self.reported[worker] += progress.pictures
        self.paid[worker] = self.paid.get(worker, 0.0) + progress.dollars
        self.display.advance(pictures=progress.pictures, dollars=progress.dollars)

    def record_outcome(self, shard: str, outcome: ShardOutcome, worker: int = 0) -> bool:
        """Record the outcome of a shard; return True if it must run again."""
        reported, paid = self.reported.pop(worker, 0), self.paid.pop(worker, 0.0)
        if outcome.kind == "fatal":
            raise outcome.value
        if outcome.kind == "done":
            self.summary.done += 1
            for name, count in outcome.value.items():
                self.summary.counts[name] = self.summary.counts.get(name, 0) + count
            dollars = outcome.value.get("microdollars", 0) / 1e6
            self.display.advance(1, max(0, outcome.value.get("pictures", 0) - reported), max(0.0, dollars - paid))
            return False
        self._require_folders()
        self.failures[shard] += 1
        if self.failures[shard] <= self.retries:
            return True
        reason = outcome.value if outcome.kind == "failed" else f"its worker died ({outcome.value})"
        self.summary.failed[shard] = reason
        self.display.advance(1)
        self.display.print(f"shard {shard} failed: {reason}")
        return False

    def _require_folders(self) -> None:
        for folder in self.folders:
            if not folder.exists():
                raise EngineError(
                    f"{folder} was removed while {self.stage.name} was writing it; run the command again."
                )


def _existing_ancestor(folder: Path) -> Path:
    """Return the folder, or its innermost parent that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)
