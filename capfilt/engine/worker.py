"""What happens inside a worker, whatever started it: the models are loaded once, then shard after shard is run.

What becomes of it is told as a `ShardOutcome`: `ready`, `done` with counts, `failed` with a reason, `raise` with an error
that every other worker would meet too.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from blipcore.io.storage import FULL, AnyPath
from capfilt.errors import EngineError

# Trying the next shard after one of these only fails again, so they end the run ...
FATAL = FULL | {errno.EROFS}
FATAL_OUTPUT = frozenset({errno.EACCES, errno.EPERM})  # ... and these where they concern the output folder


class Stage(Protocol):
    """A step of the pipeline. Picklable: workers are other processes, and each gets a copy."""

    name: str

    def output(self, shard: str) -> AnyPath:
        """The file that the shard ends in; it exists exactly when the shard is done."""

    def setup(self, device: str) -> None:
        """Load models, once a worker; ValueError, FileNotFoundError and ImportError here are the user's mistakes."""

    def run(self, shard: str) -> dict[str, int]:
        """Do one shard, write `output(shard)` atomically, return counts (`pictures` among them gives the rate)."""


class ShardOutcome(NamedTuple):
    """A worker's message: ready, tick (pictures), done (counts), failed (why), raise (error) or gone (why)."""

    kind: str
    value: Any = None


def set_up(stage: Stage, device: str, index: int, threads: int | None = None) -> ShardOutcome:
    """Load the models of the worker `index`, which has `threads` compute threads for itself (None: as they are)."""
    global _share
    try:
        if threads is not None:
            _share = threads
            limit_threads(threads)
        stage.setup(pick_device(device, index))
        if threads is not None:
            limit_threads(threads)  # again, for a torch that setup has brought in
    except Exception as error:
        _trace()
        return ShardOutcome("raise", error)
    return ShardOutcome("ready")


def attempt(
    stage: Stage, shard: str, report: Callable[[int], None] | None = None, upcoming: str | None = None
) -> ShardOutcome:
    """Run a shard; `report` is told of pictures on the way, `upcoming` is what this worker will probably do next."""
    global _report, _upcoming
    before = _report, _upcoming
    _report, _upcoming = report, upcoming
    try:
        return ShardOutcome("done", stage.run(shard))
    except Exception as error:
        _trace()
        return (
            ShardOutcome("raise", error)
            if _is_fatal(error, stage.output(shard))
            else ShardOutcome("failed", describe(error))
        )
    finally:
        _report, _upcoming = before


_report: Callable[[int], None] | None = None  # of the shard in hand
_upcoming: str | None = None


def advance(pictures: int) -> None:
    """For a stage to call while it runs a shard: that many more pictures are through (moves the rate display only)."""
    if _report is not None:
        _report(pictures)


def upcoming() -> str | None:
    """For a stage to call while it runs a shard: what it will probably be given next, and may begin to read.

    It may be given another one, or none, for what others do in the meantime.
    """
    return _upcoming


# ---------------------------------------------------------------------------------------------------- errors


def _is_fatal(error: Exception, output: AnyPath) -> bool:
    if not isinstance(error, OSError):
        return isinstance(error, EngineError)
    concerns_output = str(error.filename).startswith(str(output.parent))
    return error.errno in FATAL or (error.errno in FATAL_OUTPUT and concerns_output)


def portable(told: ShardOutcome) -> ShardOutcome:
    """The same message with an error that survives pickling, of the same kind where the kind matters."""
    error = told.value
    if told.kind != "raise":
        return told
    if isinstance(error, OSError) and error.errno is not None:
        return ShardOutcome(
            "raise", OSError(error.errno, error.strerror, error.filename)
        )  # picks FileNotFoundError by itself
    for kind in (FileNotFoundError, ImportError, ValueError, EngineError):
        if isinstance(error, kind):
            return ShardOutcome("raise", kind(str(error)))
    return ShardOutcome("raise", RuntimeError(describe(error)))


def describe(error: BaseException) -> str:
    """`ValueError: what it says`, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _trace() -> None:
    if os.environ.get("CAPFILT_DEBUG") == "1":
        traceback.print_exc()


# ---------------------------------------------------------------------------------------------------- devices


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """Those of them that this worker has to itself: a stage that starts threads of its own asks for it."""
    return _share or cores()


_share: int | None = None


def pick_device(device: str, index: int) -> str:
    """Name a worker's device: for "auto" and "cuda" the GPUs are dealt round; "cpu" does without torch."""
    if device == "cpu":
        return device
    import torch

    try:
        number = torch.device("cuda" if device == "auto" else device).index
    except RuntimeError:
        raise ValueError(f"device is auto, cpu, cuda or cuda:N, not '{device}'.") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda") and count <= (number or 0):
        found = "No CUDA device was found" if count == 0 else f"The last CUDA device is cuda:{count - 1}"
        raise ValueError(f"{found}; use --device cpu or auto.")
    if device not in ("auto", "cuda"):
        return device
    return f"cuda:{index % count}" if count else "cpu"


def limit_threads(threads: int) -> None:
    """Give this process `threads` compute threads, fewer where OMP_NUM_THREADS says so."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(told)) if told.isdecimal() and int(told) > 0 else threads
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
