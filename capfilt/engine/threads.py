"""Local workers that are threads of this process: for stages of tables alone, whose work is Arrow's and the disk's.

Starting one costs nothing, where a process takes seconds to import what it needs.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import Any

from capfilt.engine.worker import ShardOutcome, Stage, attempt, set_up


@dataclass(eq=False)
class Thread:
    """A worker; its queue holds the shard to do next, or None to end."""

    shards: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None


class Threads:
    """Crew of threads."""

    def __init__(self, stage: Stage, device: str):
        self.stage, self.device = stage, device
        self.crew: list[Thread] = []
        self.told: queue.SimpleQueue[tuple[Any, ShardOutcome]] = queue.SimpleQueue()

    def hire(self, index: int) -> Thread:
        """Start a worker, which tells `ready`."""
        worker = Thread()
        worker.thread = threading.Thread(target=self._work, args=(worker, index), daemon=True)
        self.crew.append(worker)
        worker.thread.start()
        return worker

    def give(self, worker: Thread, shard: str, upcoming: str | None) -> None:
        """Have a worker do a shard; stages of tables have nothing to read ahead."""
        worker.shards.put(shard)

    def listen(self) -> list[tuple[Thread, ShardOutcome]]:
        """Wait until a worker tells something."""
        return [self.told.get()]

    def dismiss(self) -> None:
        """Let all workers end the shard they are at, and wait for it: the folder is theirs until then."""
        for worker in self.crew:
            worker.shards.put(None)
        for worker in self.crew:
            worker.thread.join()

    def _work(self, worker: Thread, index: int) -> None:
        try:
            self.told.put((worker, set_up(self.stage, self.device, index)))
            while (shard := worker.shards.get()) is not None:
                self.told.put((worker, attempt(self.stage, shard)))
        except BaseException as error:  # or the others would wait for this one
            self.told.put((worker, ShardOutcome("raise", error)))
