"""Workers that are spawned processes of this machine, each with a pipe to the parent."""

from __future__ import annotations

import multiprocessing
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from blipcore.device import count_cores
from blipcore.io.memory import describe_memory_limit
from blipcore.io.parent import exit_with_parent
from capfilt.engine.worker import Progress, ShardOutcome, Stage, StageRunner, make_portable

PROGRESS_SECONDS = 0.5  # between two progress messages of a worker


@dataclass(eq=False)
class WorkerProcess:
    """A spawned worker."""

    index: int
    process: SpawnProcess
    pipe: Connection


class ProcessPool:
    """At most `workers` processes that share the cores of this machine."""

    def __init__(self, stage: Stage, device: str, workers: int) -> None:
        self.stage, self.device = stage, device
        self.cores = max(1, count_cores() // workers)
        self.workers: list[WorkerProcess] = []

    def start(self, index: int) -> WorkerProcess:
        """Start a worker; it sends `ready` when its models are loaded."""
        context = multiprocessing.get_context("spawn")
        parent_end, child_end = context.Pipe()
        runner = StageRunner(self.stage, self.device, index, self.cores)
        process = context.Process(target=_work, args=(child_end, runner), daemon=True)
        process.start()
        # The child holds the only other copy of its end, so its death closes the pipe.
        child_end.close()
        worker = WorkerProcess(index, process, parent_end)
        self.workers.append(worker)
        return worker

    def submit(self, worker: WorkerProcess, shard: str, next_shard: str | None) -> None:
        """Send a worker its shard, and the one that it probably runs next."""
        with suppress(OSError):  # `wait` reports a dead worker
            worker.pipe.send((shard, next_shard))

    def wait(self) -> list[tuple[WorkerProcess, ShardOutcome]]:
        """Wait for outcomes; a worker whose outcome is `died` has left the pool."""
        by_pipe = {worker.pipe: worker for worker in self.workers}
        ready = [pipe for pipe in wait(list(by_pipe)) if isinstance(pipe, Connection)]
        return [(by_pipe[pipe], self._receive(by_pipe[pipe])) for pipe in ready]

    def _receive(self, worker: WorkerProcess) -> ShardOutcome:
        try:
            return worker.pipe.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            worker.process.join()
            worker.pipe.close()
            return ShardOutcome("died", _describe_exit(worker.process.exitcode))

    def stop(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


def _work(pipe: Connection, runner: StageRunner) -> None:
    """Set up, then run shards from the pipe until the parent closes it."""
    # Ctrl-C reaches the whole process group; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()  # an orphan would write into the same folder as the next run
    outcome = runner.setup()
    with suppress(EOFError):
        while True:
            pipe.send(make_portable(outcome))
            if outcome.kind == "fatal":
                return
            shard, next_shard = pipe.recv()
            outcome = runner.run(shard, next_shard, _ProgressSender(pipe))


class _ProgressSender:
    """Sends new progress to the parent, at most twice per second."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.pending, self.last_sent = pipe, Progress(0), 0.0

    def __call__(self, progress: Progress) -> None:
        self.pending = Progress(self.pending.pictures + progress.pictures, self.pending.dollars + progress.dollars)
        if time.monotonic() - self.last_sent >= PROGRESS_SECONDS:
            self.pipe.send(ShardOutcome("progress", self.pending))
            self.pending, self.last_sent = Progress(0), time.monotonic()


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return f"{name}, perhaps out of memory"
    # Libraries crash where they do not check an allocation.
    return f"{name}{describe_memory_limit()}"
