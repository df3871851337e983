"""Stages for the engine's tests, in a module of their own because spawned workers import them by name."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from capfilt.engine.worker import advance, upcoming


@dataclass
class Toy:
    """Writes `<shard>.txt`; the shard names in the fields misbehave, those of `*_once` only the first time."""

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
    slow: tuple[str, ...] = ()

    def output(self, shard: str) -> Path:
        return self.folder / f"{shard}.txt"

    def setup(self, device: str) -> None:
        if self.setup_error == "ValueError":
            raise ValueError("The checkpoint is a captioner; give a filter.")
        if self.setup_error == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.device = device

    def run(self, shard: str) -> dict[str, int]:
        with open(self.folder / f"{shard}.tries", "a") as file:
            file.write(f"{os.getpid()}\n")
        (self.folder / f"{shard}.upcoming").write_text(upcoming() or "")
        first = len((self.folder / f"{shard}.tries").read_text().split()) == 1
        advance(3)
        if shard in self.fails or (first and shard in self.fails_once):
            raise ValueError(f"shard {shard}\nis bad")
        if shard in self.dies or (first and shard in self.dies_once):
            os.kill(os.getpid(), signal.SIGKILL)
        if first and shard in self.interrupted_once:
            raise BaseException("by what no stage expects")
        if shard in self.disk_full:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.output(shard)))
        time.sleep(1.0 if shard in self.slow else self.seconds)
        temporary = self.output(shard).with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(f"{shard} {self.device}\n")
        temporary.rename(self.output(shard))
        return {"pictures": 10, "odd": int(shard) % 2}
