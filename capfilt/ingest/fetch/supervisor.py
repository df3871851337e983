"""Runs the fetcher in a child process, reports its progress, and stops it when it stalls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from blipcore.io.tars import walk_tar

START_SECONDS = 120.0  # until the first tar is opened: imports on a busy machine are no stall


def run_fetcher(place: Path, stall_seconds: float, deadline: float, tick: Callable[[int], None]) -> str:
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    count = OutputProgress(place / "out")
    with open(place / "log.txt", "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "capfilt.ingest.fetch.fetcher", str(place / "fetch.json")],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # one group to end, and Ctrl-C comes to us alone
        )
        last_change, seen = time.monotonic(), -1
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return "done" if child.wait(0.5) == 0 else "died"
                size = count.look()
                tick(count.rows)
                patience = stall_seconds if count.started else max(stall_seconds, START_SECONDS)
                if time.monotonic() > deadline:
                    return "late"
                if size != seen:
                    last_change, seen = time.monotonic(), size
                elif time.monotonic() - last_change > patience:
                    return "stalled"
        finally:
            if child.returncode != 0:
                with suppress(ProcessLookupError, PermissionError):  # macOS says the second of zombies
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            child.stdin.close()
            count.look()
            tick(count.rows)


class OutputProgress:
    """Counts the rows that are through, by what img2dataset has written so far."""

    def __init__(self, out: Path):
        self.out = out
        self.rows = 0
        self.started = False
        self.ended: dict[str, int] = {}  # rows of the pieces that are complete
        self.open: dict[str, tuple[int, int]] = {}  # tar in the making -> (bodies, where to read on)

    def look(self) -> int:
        """Update `rows`; returns the bytes on disk, which move even when no row is complete."""
        size = 0
        for entry in os.scandir(self.out):
            size += entry.stat().st_size if entry.is_file() else 0
            self.started |= entry.name.endswith(".tar")
            if entry.name.endswith("_stats.json") and entry.name not in self.ended:
                with suppress(ValueError, KeyError):
                    self.ended[entry.name] = json.loads(Path(entry.path).read_text())["count"]
                    self.open.pop(entry.name.replace("_stats.json", ".tar"), None)
            elif entry.name.endswith(".tar") and entry.name.replace(".tar", "_stats.json") not in self.ended:
                self.open[entry.name] = _count_pictures(Path(entry.path), *self.open.get(entry.name, (0, 0)))
        self.rows = sum(self.ended.values()) + sum(bodies for bodies, _ in self.open.values())
        return size


def _count_pictures(tar: Path, bodies: int, position: int) -> tuple[int, int]:
    with open(tar, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        for member in walk_tar(file, [], position):
            after = member.offset + -(-member.size // 512) * 512
            if after > end:
                break
            bodies, position = bodies + member.name.endswith(".jpg"), after
    return bodies, position
