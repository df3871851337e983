"""Runs the fetcher in a child process, reports its progress, and kills it if it stalls."""

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
from typing import Literal

from blipcore.io.tars import walk_tar

START_SECONDS = 120.0  # until the first tar appears, because imports are slow on a busy machine

FetchEnd = Literal["done", "died", "late", "stalled"]


def fetcher_variables(root: Path) -> dict[str, str]:
    """Return environment variables of the fetcher; `root` is the folder that holds capfilt.

    A checkout that is not installed must be on the path. Installed packages must not: `PYTHONPATH` precedes the
    standard library, and img2dataset installs an old copy of its module `dataclasses`.
    """
    variables = {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    if root.name not in ("site-packages", "dist-packages"):
        variables["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return variables


def run_fetcher(
    folder: Path,
    stall_seconds: float,
    deadline: float,
    report: Callable[[int], None],
    clock: Callable[[], float] = time.monotonic,
) -> FetchEnd:
    """Run the fetcher with the settings in `folder`/fetch.json; return how it ended. Its output stays on disk.

    `report` is called with the number of finished rows. The fetcher is killed at `deadline` ("late") and after
    `stall_seconds` without any progress ("stalled"). Its messages go to `folder`/log.txt.
    """
    environment = os.environ | fetcher_variables(Path(__file__).resolve().parents[3])
    progress = OutputProgress(folder / "out")
    with (
        open(folder / "log.txt", "wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "capfilt.ingest.fetch.fetcher", str(folder / "fetch.json")],
            stdin=subprocess.PIPE,  # closes when this process ends, and the child exits
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a process group: killed as one, and not reached by Ctrl-C
        ) as child,
    ):
        last_change, last_size = clock(), -1
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return "done" if child.wait(0.5) == 0 else "died"
                size = progress.update()
                report(progress.rows)
                patience = stall_seconds if progress.started else max(stall_seconds, START_SECONDS)
                if clock() > deadline:
                    return "late"
                if size != last_size:
                    last_change, last_size = clock(), size
                elif clock() - last_change > patience:
                    return "stalled"
        finally:
            if child.returncode != 0:
                with suppress(ProcessLookupError, PermissionError):  # macOS raises the second for zombies
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            progress.update()
            report(progress.rows)


class OutputProgress:
    """Counts the finished rows in the output of img2dataset."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows = 0
        self.started = False
        self._complete: dict[str, int] = {}  # name of a statistics file -> rows of its tar
        self._incomplete: dict[str, tuple[int, int]] = {}  # name of a tar -> pictures so far, position to continue at

    def update(self) -> int:
        """Update `rows`; return the bytes on disk, which grow even while no row is finished."""
        size = 0
        for entry in os.scandir(self.out):
            size += entry.stat().st_size if entry.is_file() else 0
            self.started |= entry.name.endswith(".tar")
            if entry.name.endswith("_stats.json") and entry.name not in self._complete:
                with suppress(ValueError, KeyError):
                    self._complete[entry.name] = json.loads(Path(entry.path).read_text())["count"]
                    self._incomplete.pop(entry.name.replace("_stats.json", ".tar"), None)
            elif entry.name.endswith(".tar") and entry.name.replace(".tar", "_stats.json") not in self._complete:
                pictures, position = self._incomplete.get(entry.name, (0, 0))
                self._incomplete[entry.name] = _count_pictures(Path(entry.path), pictures, position)
        self.rows = sum(self._complete.values()) + sum(pictures for pictures, _ in self._incomplete.values())
        return size


def _count_pictures(tar: Path, pictures: int, position: int) -> tuple[int, int]:
    """Count complete pictures from `position` on; return their number and the position after the last member."""
    with open(tar, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        for member in walk_tar(file, [], position):
            next_position = member.offset + -(-member.size // 512) * 512
            if next_position > end:
                break
            pictures, position = pictures + member.name.endswith(".jpg"), next_position
    return pictures, position
