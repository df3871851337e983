"""Runs a stage inside one worker: loads its models once, then runs shard after shard.

Processes, threads and Ray actors all use `StageRunner`. Each of its steps returns a `ShardOutcome`, never raises.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from blipcore.device import count_cores
from blipcore.io.memory import describe_memory_limit, is_allocation_error
from blipcore.io.storage import DISK_FULL_ERRNOS, AnyPath
from capfilt.errors import EngineError

# Errors that end the run, because the next shard would fail in the same way ...
FATAL_ERRNOS = DISK_FULL_ERRNOS | {errno.EROFS}
# ... and those that do so if they concern the output folder.
FATAL_OUTPUT_ERRNOS = frozenset({errno.EACCES, errno.EPERM})


class Progress(NamedTuple):
    """Pictures finished since the last report, and dollars paid for them."""

    pictures: int
    dollars: float = 0.0


def ignore_progress(progress: Progress) -> None:
    """Discard a progress report."""


@dataclass(frozen=True)
class Worker:
    """The resources of the worker that runs a shard, and its link to the progress display."""

    device: str
    # CPU cores of this worker, for threads that the stage starts
    cores: int
    # shard that this worker probably runs next, for reading ahead
    next_shard: str | None = None
    # takes the progress, for the displayed rate and cost
    report: Callable[[Progress], None] = ignore_progress

    def advance(self, pictures: int, dollars: float = 0.0) -> None:
        """Report finished pictures, and the dollars paid since the last report."""
        self.report(Progress(pictures, dollars))


class Stage(Protocol):
    """A step of the pipeline; picklable, because each worker process gets a copy."""

    name: str

    def output(self, shard: str) -> AnyPath:
        """Return the last file written for a shard, which is done if the file exists."""

    def setup(self, device: str) -> None:
        """Load models, once per worker. Mistakes of the user raise ValueError, FileNotFoundError or ImportError."""

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        """Run one shard, write `output(shard)` atomically and return counts.

        `pictures` and `microdollars` give the displayed rate and cost.
        """


OutcomeKind = Literal["ready", "progress", "done", "failed", "fatal", "died"]


class ShardOutcome(NamedTuple):
    """A message from a worker to the engine.

    `ready`: models are loaded. `progress`: a `Progress`. `done`: the counts of a shard. `failed`: the reason.
    `fatal`: an exception that every other shard would raise too. `died`: how the worker ended.
    """

    kind: OutcomeKind
    value: Any = None


class StageRunner:
    """Runs the shards of one stage inside one worker."""

    def __init__(self, stage: Stage, device: str, index: int, cores: int | None = None) -> None:
        """Describe worker `index`; `cores` limits its compute threads."""
        self.stage, self.requested_device, self.index = stage, device, index
        self.device, self.limit = "cpu", cores
        self.cores = cores or count_cores()

    def setup(self) -> ShardOutcome:
        """Load the stage's models: `ready` or `fatal`."""
        try:
            if self.limit is not None:
                limit_compute_threads(self.limit)
            self.device = worker_device(self.requested_device, self.index)
            self.stage.setup(self.device)
            if self.limit is not None:
                limit_compute_threads(self.limit)  # again, because setup may have imported torch
        except Exception as error:
            _print_traceback()
            return ShardOutcome("fatal", error)
        return ShardOutcome("ready")

    def run(
        self, shard: str, next_shard: str | None = None, report: Callable[[Progress], None] = ignore_progress
    ) -> ShardOutcome:
        """Run a shard: `done`, `failed` or `fatal`."""
        try:
            counts = self.stage.run(shard, Worker(self.device, self.cores, next_shard, report))
        except Exception as error:
            _print_traceback()
            if _is_fatal(error, self.stage.output(shard)):
                return ShardOutcome("fatal", error)
            return ShardOutcome("failed", describe_error(error))
        return ShardOutcome("done", counts)


# ---------------------------------------------------------------------------------------------------- errors


def make_portable(outcome: ShardOutcome) -> ShardOutcome:
    """Return the outcome with an exception that can be pickled, of the same type where the type matters."""
    error = outcome.value
    if outcome.kind != "fatal":
        return outcome
    if isinstance(error, OSError) and error.errno is not None:
        # OSError picks the subclass, such as FileNotFoundError, by the number
        return ShardOutcome("fatal", OSError(error.errno, error.strerror, error.filename))
    for kind in (FileNotFoundError, ImportError, ValueError, EngineError):
        if isinstance(error, kind):
            return ShardOutcome("fatal", kind(str(error)))
    return ShardOutcome("fatal", RuntimeError(describe_error(error)))


def describe_error(error: BaseException) -> str:
    """Return `ValueError: the message`, on one line; with the limit of memory if it was reached."""
    text = " ".join(str(error).split())
    if is_allocation_error(error):
        text += describe_memory_limit()
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _is_fatal(error: Exception, output: AnyPath) -> bool:
    if not isinstance(error, OSError):
        return isinstance(error, EngineError)
    concerns_output = str(error.filename).startswith(str(output.parent))
    return error.errno in FATAL_ERRNOS or (error.errno in FATAL_OUTPUT_ERRNOS and concerns_output)


def _print_traceback() -> None:
    if os.environ.get("CAPFILT_DEBUG") == "1":
        traceback.print_exc()


# ---------------------------------------------------------------------------------------------------- devices


def worker_device(device: str, index: int) -> str:
    """Return the device of worker `index`; "auto" and "cuda" assign the GPUs in turn, "cpu" needs no torch."""
    if device == "cpu":
        return device
    import torch

    try:
        number = torch.device("cuda" if device == "auto" else device).index
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not '{device}'.") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda") and count <= (number or 0):
        problem = "No CUDA device was found" if count == 0 else f"The last CUDA device is cuda:{count - 1}"
        raise ValueError(f"{problem}; use --device cpu or auto.")
    if device not in ("auto", "cuda"):
        return device
    return f"cuda:{index % count}" if count else "cpu"


def limit_compute_threads(threads: int) -> None:
    """Limit this process to `threads` compute threads, or to OMP_NUM_THREADS if that is fewer."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested) > 0:
        threads = min(threads, int(requested))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
