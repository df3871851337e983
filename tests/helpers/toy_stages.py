"""Stages for the engine's tests, in a module of their own because spawned workers import them by name."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from capfilt.engine.worker import Worker


@dataclass
class Toy:
    """Writes `<shard>.txt`. The fields name shards that misbehave, those of `*_once` the first time only."""

    folder: Path
    name: str = "toy"
    fails: tuple[str, ...] = ()
    fails_once: tuple[str, ...] = ()
    dies: tuple[str, ...] = ()
    dies_once: tuple[str, ...] = ()
    interrupted_once: tuple[str, ...] = ()
    disk_full: tuple[str, ...] = ()
    setup_error: str = ""
    seconds: float = 0.0
    # ends when this many shards have begun, itself included
    waits_for: tuple[tuple[str, int], ...] = ()

    def output(self, shard: str) -> Path:
        return self.folder / f"{shard}.txt"

    def setup(self, device: str) -> None:
        if self.setup_error == "ValueError":
            raise ValueError("The checkpoint is a captioner; give a filter.")
        if self.setup_error == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        with open(self.folder / f"{shard}.tries", "a") as file:
            file.write(f"{os.getpid()}\n")
        (self.folder / f"{shard}.next").write_text(worker.next_shard or "")
        is_first = len((self.folder / f"{shard}.tries").read_text().split()) == 1
        worker.advance(3)
        if shard in self.fails or (is_first and shard in self.fails_once):
            raise ValueError(f"shard {shard}\nis bad")
        if shard in self.dies or (is_first and shard in self.dies_once):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_first and shard in self.interrupted_once:
            raise BaseException("an exception that no stage raises")
        if shard in self.disk_full:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.output(shard)))
        self._wait(dict(self.waits_for).get(shard, 0))
        temporary = self.output(shard).with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(f"{shard} {worker.device} {worker.cores}\n")
        temporary.rename(self.output(shard))
        return {"pictures": 10, "odd": int(shard) % 2}

    def _wait(self, shards: int) -> None:
        time.sleep(self.seconds)
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("*.tries"))) < shards:
            assert time.monotonic() < deadline, f"{shards} shards have not begun"
            time.sleep(0.01)


@dataclass
class LateFolder(Toy):
    """Writes to a folder that it makes with its first shard."""

    # shards that find the stage's folder removed
    removes: tuple[str, ...] = ()

    def output(self, shard: str) -> Path:
        return self.folder / "late" / f"{shard}.txt"

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        if shard in self.removes:
            shutil.rmtree(self.folder)
        return super().run(shard, worker)

    def _wait(self, shards: int) -> None:
        super()._wait(shards)
        self.output("").parent.mkdir(exist_ok=True)
