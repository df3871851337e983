"""Local workers: spawned processes, each with a pipe to this one; GPUs are dealt round."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from capfilt.engine.worker import ShardOutcome, Stage, attempt, cores, portable, set_up


@dataclass(eq=False)
class Process:
    """A spawned worker."""

    index: int
    process: Any
    pipe: Connection


class Processes:
    """Crew of `workers` processes of this machine."""

    def __init__(self, stage: Stage, device: str, workers: int):
        self.stage, self.device = stage, device
        self.threads = max(1, cores() // workers)
        self.crew: list[Process] = []

    def hire(self, index: int) -> Process:
        """Start a worker, which tells `ready` when its models are loaded."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        arguments = (there, self.stage, self.device, index, self.threads)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        there.close()  # ours alone then, so that its end is heard when the worker dies
        self.crew.append(Process(index, process, here))
        return self.crew[-1]

    def give(self, worker: Process, shard: str, upcoming: str | None) -> None:
        """Have a worker do a shard, and tell it what it will probably do next."""
        with suppress(OSError):  # it has just died: its pipe tells
            worker.pipe.send((shard, upcoming))

    def listen(self) -> list[tuple[Process, ShardOutcome]]:
        """Wait until workers tell something; one that is `gone` belongs to the crew no more."""
        by_pipe = {worker.pipe: worker for worker in self.crew}
        return [(by_pipe[pipe], self._hear(by_pipe[pipe])) for pipe in wait(list(by_pipe))]

    def _hear(self, worker: Process) -> ShardOutcome:
        try:
            return worker.pipe.recv()
        except (EOFError, OSError):
            self.crew.remove(worker)
            worker.process.join()
            worker.pipe.close()
            return ShardOutcome("gone", _exit(worker.process.exitcode))

    def dismiss(self) -> None:
        """End all workers."""
        for worker in self.crew:
            worker.process.terminate()
        for worker in self.crew:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


def _work(pipe: Connection, stage: Stage, device: str, index: int, threads: int) -> None:
    """Life of a worker: set up, then one shard after the other until dismissed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    told = set_up(stage, device, index, threads)
    with suppress(EOFError):
        while True:
            pipe.send(portable(told))
            if told.kind == "raise":
                return
            shard, upcoming = pipe.recv()
            told = attempt(stage, shard, _Ticker(pipe), upcoming)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # without it a worker would go on writing beside the next run


class _Ticker:
    """Sends progress at most twice a second, from within a worker."""

    def __init__(self, pipe: Connection):
        self.pipe, self.pending, self.last = pipe, 0, 0.0

    def __call__(self, pictures: int) -> None:
        self.pending += pictures
        if time.monotonic() - self.last >= 0.5:
            self.pipe.send(ShardOutcome("tick", self.pending))
            self.pending, self.last = 0, time.monotonic()


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
    return f"exit code {code}"
