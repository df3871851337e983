"""Workers that are threads of this process, for stages that only read and write tables.

Arrow and the disk do that work outside the interpreter lock. A thread starts at once; a process spends seconds on
imports.
"""

from __future__ import annotations

import queue
import threading

from capfilt.engine.worker import ShardOutcome, Stage, StageRunner


class WorkerThread(threading.Thread):
    """A worker; its queue holds the shard to run next, or None to end."""

    def __init__(self, runner: StageRunner, outcomes: queue.SimpleQueue[tuple[WorkerThread, ShardOutcome]]) -> None:
        super().__init__(daemon=True)
        self.runner, self.outcomes = runner, outcomes
        self.shards: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Set up, then run shards until there is a None in the queue."""
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
        """Give a worker its shard; stages of tables do not read ahead, so `next_shard` is ignored."""
        worker.shards.put(shard)

    def wait(self) -> list[tuple[WorkerThread, ShardOutcome]]:
        """Wait for an outcome."""
        return [self.outcomes.get()]

    def stop(self) -> None:
        """Wait until each worker has ended its shard: until then it writes into the output folder."""
        for worker in self.workers:
            worker.shards.put(None)
        for worker in self.workers:
            worker.join()
