"""Runs a stage over shards on local processes: skip what is done, retry what failed, name what failed again.

A stage is a picklable object; the engine knows its four members and nothing of pictures or models. A shard is the unit
of work, of failure and of resuming, and is done when its output exists. The number of workers and any restart change
how long a run takes, never what it writes.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from capfilt.progress import Display

# Trying the next shard after one of these only fails again, so they end the run.
FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


class EngineError(RuntimeError):
    """The run cannot go on, and it is not a shard's fault."""


class Stage(Protocol):
    """A step of the pipeline. Picklable: workers are spawned, and each gets a copy."""

    name: str

    def output(self, shard: str) -> Path:
        """The file that the shard ends in; it exists exactly when the shard is done."""

    def setup(self, device: str) -> None:
        """Load models, once a worker; ValueError, FileNotFoundError and ImportError here are the user's mistakes."""

    def run(self, shard: str) -> dict[str, int]:
        """Do one shard, write `output(shard)` atomically, return counts (`pictures` among them gives the rate)."""


@dataclass
class Summary:
    """What became of the shards of one run; `counts` sums those of the shards done now."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # shard -> why
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


_report: Callable[[int], None] | None = None  # set by whoever runs a stage in this process


def advance(pictures: int) -> None:
    """For a stage to call while it runs a shard: that many more pictures are through (moves the rate display only)."""
    if _report is not None:
        _report(pictures)


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

    One worker runs in this process, several are spawned. A worker that dies takes only its shard with it, which is
    done again elsewhere at most `retries` times. Raises what `stage.setup` raises, and OSError when the disk is full
    or read-only.
    """
    if engine != "local":
        raise ValueError(f"Unknown engine '{engine}'; choose 'local'.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    shards = list(shards)
    todo = [shard for shard in shards if not stage.output(shard).exists()]
    summary = Summary(skipped=len(shards) - len(todo))
    start = time.monotonic()
    with Display(stage.name, len(shards), done=summary.skipped, shown=progress) as display:
        book = _Book(summary, display)
        if not todo:
            display.say(f"{stage.name}: all {len(shards)} shards are done already.")
        elif workers == 1:
            _run_here(stage, todo, device, retries, book)
        else:
            _run_spawned(stage, todo, min(workers, len(todo)), device, retries, book)
    summary.seconds = time.monotonic() - start
    return summary


# ---------------------------------------------------------------------------------------------------- one process


def _run_here(stage: Stage, todo: list[str], device: str, retries: int, book: _Book) -> None:
    global _report
    stage.setup(pick_device(device, 0))
    before, _report = _report, book.tick
    try:
        for shard in todo:
            for attempt in range(retries + 1):
                try:
                    book.done(shard, stage.run(shard))
                    break
                except Exception as error:
                    if _is_fatal(error):
                        raise
                    _trace()
                    if attempt == retries:
                        book.failed(shard, describe(error))
    finally:
        _report = before


# ---------------------------------------------------------------------------------------------------- processes


@dataclass
class _Worker:
    index: int
    process: Any
    pipe: Connection
    ready: bool = False  # has loaded its models
    shard: str | None = None  # what it works on


def _run_spawned(stage: Stage, todo: list[str], workers: int, device: str, retries: int, book: _Book) -> None:
    queue, attempts, crew, stillborn = deque(todo), Counter[str](), [], 0
    try:
        while queue or any(worker.shard for worker in crew):
            while len(crew) < workers and len(queue) > sum(worker.shard is None for worker in crew):
                free = next(index for index in range(workers) if index not in [worker.index for worker in crew])
                crew.append(_hire(stage, device, free, workers))
            for worker in crew:
                if queue and worker.ready and worker.shard is None:
                    worker.shard = queue.popleft()
                    with suppress(OSError):  # it has just died: its pipe tells below
                        worker.pipe.send(worker.shard)
            for pipe in wait([worker.pipe for worker in crew]):
                worker = next(worker for worker in crew if worker.pipe is pipe)
                kind, value = _hear(worker)
                shard = worker.shard
                if kind == "tick":
                    book.tick(value, worker.index)
                    continue
                if kind == "raise":  # its setup failed or the disk is full: every worker would meet the same
                    raise value
                if kind == "gone":
                    crew.remove(worker)
                    stillborn += not worker.ready
                    if stillborn > workers + retries:
                        raise EngineError(f"Workers die while they load ({value}); try fewer of them with --workers.")
                worker.ready, worker.shard = True, None
                if kind == "done":
                    book.done(shard, value, worker.index)
                elif shard is not None:  # failed, or its worker is gone
                    attempts[shard] += 1
                    if attempts[shard] > retries:
                        book.failed(shard, value if kind == "failed" else f"its worker died ({value})")
                    else:
                        queue.append(shard)
    finally:
        _dismiss(crew)


def _hire(stage: Stage, device: str, index: int, workers: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    threads = max(1, cores() // workers)
    process = context.Process(target=_work, args=(there, stage, device, index, threads), daemon=True)
    process.start()
    there.close()  # ours alone then, so that its end is heard when the worker dies
    return _Worker(index, process, here)


def _hear(worker: _Worker) -> tuple[str, Any]:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        worker.pipe.close()
        return "gone", _exit(worker.process.exitcode)


def _dismiss(crew: list[_Worker]) -> None:
    for worker in crew:
        worker.process.terminate()
    for worker in crew:
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _work(pipe: Connection, stage: Stage, device: str, index: int, threads: int) -> None:
    """Life of a spawned worker: set up, then one shard after the other until dismissed."""
    global _report
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        limit_threads(threads)
        stage.setup(pick_device(device, index))
        limit_threads(threads)  # again, for a torch that setup has brought in
    except Exception as error:
        _trace()
        pipe.send(("raise", _portable(error)))
        return
    pipe.send(("ready", None))
    while True:
        try:
            shard = pipe.recv()
        except EOFError:
            return
        _report = _Ticker(pipe)
        try:
            counts = stage.run(shard)
        except Exception as error:
            _trace()
            if _is_fatal(error):
                pipe.send(("raise", _portable(error)))
                return
            pipe.send(("failed", describe(error)))
        else:
            pipe.send(("done", counts))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # without it a worker would go on writing beside the next run


def _portable(error: Exception) -> Exception:
    """The error as something that survives pickling, of the same kind where the kind matters."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)  # picks FileNotFoundError and so on by itself
    for kind in (FileNotFoundError, ImportError, ValueError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(describe(error))


class _Ticker:
    """Sends progress at most twice a second, from within a worker."""

    def __init__(self, pipe: Connection):
        self.pipe, self.pending, self.last = pipe, 0, 0.0

    def __call__(self, pictures: int) -> None:
        self.pending += pictures
        if time.monotonic() - self.last >= 0.5:
            self.pipe.send(("tick", self.pending))
            self.pending, self.last = 0, time.monotonic()


# ---------------------------------------------------------------------------------------------------- devices, words


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(device: str, index: int) -> str:
    """Name a worker's device: for "auto" and "cuda" the GPUs are dealt round; imports torch for these two alone."""
    if device not in ("auto", "cuda"):
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and count == 0:
        raise ValueError("No CUDA device was found; use --device cpu.")
    return f"cuda:{index % count}" if count else "cpu"


def limit_threads(threads: int) -> None:
    """Give this process `threads` compute threads, fewer where OMP_NUM_THREADS says so."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(told)) if told.isdecimal() and int(told) > 0 else threads
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def describe(error: BaseException) -> str:
    """`ValueError: what it says`, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
    return f"exit code {code}"


def _trace() -> None:
    if os.environ.get("CAPFILT_DEBUG") == "1":
        traceback.print_exc()


def _is_fatal(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FATAL


class _Book:
    """Keeps the summary and moves the display; pictures told by `advance` are not counted again when a shard ends."""

    def __init__(self, summary: Summary, display: Display):
        self.summary, self.display = summary, display
        self.ticked: Counter[int] = Counter()  # pictures of the shard in hand, by worker

    def tick(self, pictures: int, worker: int = 0) -> None:
        self.ticked[worker] += pictures
        self.display.advance(pictures=pictures)

    def done(self, shard: str, counts: dict[str, int], worker: int = 0) -> None:
        self.summary.done += 1
        for name, count in counts.items():
            self.summary.counts[name] = self.summary.counts.get(name, 0) + count
        self.display.advance(1, max(0, counts.get("pictures", 0) - self.ticked.pop(worker, 0)))

    def failed(self, shard: str, why: str) -> None:
        self.summary.failed[shard] = why
        self.display.advance(1)
        self.display.say(f"shard {shard} failed: {why}")
