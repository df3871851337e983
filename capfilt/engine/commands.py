"""Commands of capfilt run as child processes, each with a log and a summary: how a longer job does its parts.

In: steps, which are names and the words a user would type. Out, in one folder: NAME.log, what the command said, and
NAME.json, its summary, written when it has succeeded: present means done, so a job launched again goes on where it was.
A job that is interrupted or told to end (SIGTERM) ends its steps. One that is killed cannot; the step that lives on
holds a lock on NAME.json.partial, its output, so that it is not started a second time beside itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blipcore.io.config_diff import diff_configs
from blipcore.io.writing import write_json


class StepFailedError(RuntimeError):
    """A command failed; the message names it, its exit code, its last words and its log."""


@dataclass(frozen=True)
class Step:
    """One command: a name of its own within the job, and its words after `capfilt`."""

    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"capfilt {shlex.join(self.words)}"


class Steps:
    """Runs steps, and knows which are done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, step: Step) -> Path:
        """Where the command's messages go."""
        return self.folder / f"{step.name}.log"

    def summary(self, step: Step) -> dict[str, Any] | None:
        """What the command printed with --json, once it has succeeded."""
        path = self.folder / f"{step.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def last_words(self, step: Step) -> str:
        """The last line of its log."""
        try:
            with self.log(step).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""

    def run(self, *steps: Step, environment: Mapping[str, str] | None = None) -> None:
        """Run steps side by side, those done before left out.

        Raises StepFailedError when all have ended and one did not succeed. Interrupted, it ends them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        running: list[tuple[Step, subprocess.Popen[bytes]]] = []
        with _told_to_end():
            try:
                for step in steps:
                    if self.summary(step) is None:
                        running.append((step, self._start(step, environment)))
                for _, process in running:
                    process.wait()
            except BaseException:
                for _, process in running:
                    process.terminate()
                for _, process in running:
                    process.wait()
                raise
        for step, process in running:
            if process.returncode:
                said = self.last_words(step) or "no output"
                raise StepFailedError(f"{step} exited with {process.returncode}: {said} (see {self.log(step)})")
            os.replace(self._partial(step), self.folder / f"{step.name}.json")

    def _partial(self, step: Step) -> Path:
        return self.folder / f"{step.name}.json.partial"

    def _start(self, step: Step, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "capfilt", *step.words, "--json"]
        with self._partial(step).open("ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the step's own: it holds it for as long as it lives
            except BlockingIOError:
                raise StepFailedError(
                    f"{step} is still at work, started by a run that was killed; wait until it has ended, or end it, "
                    f"and run the same command again (see {self.log(step)})."
                ) from None
            out.truncate(0)
            with self.log(step).open("wb") as err:
                return subprocess.Popen(words, stdout=out, stderr=err, env=os.environ | dict(environment or {}))


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM raises SystemExit, where there is a way to hear of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def claim(folder: Path, marker: str, settings: Mapping[str, Any], job: str) -> None:
    """Take a new or empty folder for a job, or one that holds the same job; ValueError names what differs."""
    path = folder / marker
    if path.is_file():
        if changes := diff_configs(json.loads(path.read_text(encoding="utf-8")), settings):
            raise ValueError(
                f"{folder} holds a {job} with other settings ({'; '.join(changes)}): "
                "give another --out, or remove the folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no {job}: give another --out")
    write_json(path, dict(settings))
