"""Workers that are threads of this process, for stages that only read and write tables.

Arrow and the disk do that work outside the interpreter lock. A thread starts at once; a process spends seconds on
imports.
"""

from __future__ import annotations

import queue
import threading

from capfilt.engine.worker import ShardOutcome, Stage, StageRunner


class WorkerThread(threading.Thread):
    """A worker; a None in its queue of shards ends it."""

    def __init__(self, runner: StageRunner, outcomes: queue.SimpleQueue[tuple[WorkerThread, ShardOutcome]]) -> None:
        super().__init__(daemon=True)
        self.runner, self.outcomes = runner, outcomes
        self.shards: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def run(self) -> None:
        try:
            self.outcomes.put((self, self.runner.setup()))
            while (shard := self.shards.get()) is not None:
                self.outcomes.put((self, self.runner.run(shard)))
        except BaseException as error:  # otherwise the pool would wait forever
            self.outcomes.put((self, ShardOutcome("fatal", error)))


class ThreadPool:
    """Worker threads of this process."""

    def __init__(self, stage: Stage, device: str) -> None:
        self.stage, self.device = stage, device
        self.workers: list[WorkerThread] = []
        self.outcomes: queue.SimpleQueue[tuple[WorkerThread, ShardOutcome]] = queue.SimpleQueue()

    def start(self, index: int) -> WorkerThread:
        """Start a worker; it sends `ready` when it is set up."""
        worker = WorkerThread(StageRunner(self.stage, self.device, index), self.outcomes)
        self.workers.append(worker)
        worker.start()
        return worker

    def submit(self, worker: WorkerThread, shard: str, next_shard: str | None) -> None:
        """Give a worker its shard; `next_shard` is ignored, because stages of tables do not read ahead."""
        worker.shards.put(shard)

    def wait(self) -> list[tuple[WorkerThread, ShardOutcome]]:
        return [self.outcomes.get()]

    def stop(self) -> None:
        """Wait until each worker has finished its shard and writes no more."""
        for worker in self.workers:
            worker.shards.put(None)
        for worker in self.workers:
            worker.join()
