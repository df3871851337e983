"""Runs capfilt commands as child processes, each with a log and a summary: the steps of a longer job.

Each command writes NAME.log, its messages, and NAME.json, its summary. The summary exists only after success, so a
job that is started again skips finished commands.

Commands end with their job: on Ctrl-C and SIGTERM the job ends them, and after a SIGKILL the closed end of a pipe does.
A trainer saves first, so a command holds a lock on NAME.json.partial, its stdout, until it has ended, and the next job
waits for it.
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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from blipcore.io.config_diff import diff_configs
from blipcore.io.lock import lock_folder
from blipcore.io.parent import PARENT_PIPE
from blipcore.io.writing import write_json

# For a command of a killed job, which may have a checkpoint to save.
SECONDS_TO_END = 600.0


class CommandFailedError(RuntimeError):
    """A command failed; the message gives its exit code, the last line of its log and the path of the log."""


@dataclass(frozen=True)
class Command:
    """A capfilt command: a name that is unique within the job, and the arguments after `capfilt`."""

    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"capfilt {shlex.join(self.arguments)}"


@dataclass(frozen=True)
class PlannedCommand:
    """A command of a plan, the names of the planned commands that must end before it, and the slots that it takes."""

    command: Command
    needs: tuple[str, ...] = ()
    slots: int = 1


class CommandRunner:
    """Runs commands, with their logs and summaries in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, command: Command) -> Path:
        return self.folder / f"{command.name}.log"

    def summary(self, command: Command) -> dict[str, Any] | None:
        """Return the summary of a command, None if it has not succeeded."""
        return self.named_summary(command.name)

    def named_summary(self, name: str) -> dict[str, Any] | None:
        """Return the summary of the command with this name, as `summary`."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def last_line(self, command: Command) -> str:
        """Return the last line of the command's log, or an empty string."""
        try:
            with self.log(command).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""

    def run(self, *commands: Command, environment: Mapping[str, str] | None = None) -> None:
        """Run commands in parallel, except those that have a summary. Raises CommandFailedError."""
        self.run_plan([PlannedCommand(command) for command in commands], len(commands), environment)

    def run_plan(
        self,
        plan: Sequence[PlannedCommand],
        slots: int,
        environment: Mapping[str, str] | None = None,
        started: Callable[[Command], None] = lambda command: None,
        ended: Callable[[Command, float], None] = lambda command, seconds: None,
    ) -> None:
        """Run the commands of a plan without a summary, each as soon as the commands that it needs have ended.

        Commands take at most `slots` slots at a time, in the order of the plan: one that waits for slots holds up those
        after it. `ended` gets the seconds of a command. Raises CommandFailedError if a command has failed, after those
        that run have ended. An interrupt ends them all.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting = [planned for planned in plan if self.summary(planned.command) is None]
        running: list[tuple[PlannedCommand, subprocess.Popen[bytes], float]] = []
        failed: list[tuple[Command, int]] = []
        parent_pipe, own_end = os.pipe()
        with _exit_on_sigterm():
            try:
                while running or (waiting and not failed):
                    unfinished = {planned.command.name for planned, *_ in running}
                    unfinished |= {planned.command.name for planned in waiting}
                    free = slots - sum(min(planned.slots, slots) for planned, *_ in running)
                    ready = (planned for planned in waiting if unfinished.isdisjoint(planned.needs))
                    planned = next(ready, None)
                    if planned is not None and min(planned.slots, slots) <= free and not failed:
                        waiting.remove(planned)
                        started(planned.command)
                        process = self._start(planned.command, environment, parent_pipe)
                        running.append((planned, process, time.monotonic()))
                        continue
                    assert running, f"commands need each other: {', '.join(sorted(unfinished))}"
                    done = _wait_for_any([process for _, process, _ in running])
                    planned, process, start = running.pop(done)
                    if process.returncode:
                        failed.append((planned.command, process.returncode))
                    else:
                        os.replace(self._partial(planned.command), self.folder / f"{planned.command.name}.json")
                        ended(planned.command, time.monotonic() - start)
            except BaseException:
                for _, process, _ in running:
                    process.terminate()
                for _, process, _ in running:
                    process.wait()
                raise
            finally:
                os.close(parent_pipe)
                os.close(own_end)
        for command, code in failed:
            reason = self.last_line(command) or "no output"
            raise CommandFailedError(f"{command} exited with {code}: {reason} (see {self.log(command)})")

    def _partial(self, command: Command) -> Path:
        return self.folder / f"{command.name}.json.partial"

    def _start(
        self, command: Command, environment: Mapping[str, str] | None, parent_pipe: int
    ) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "capfilt", *command.arguments, "--json"]
        variables = os.environ | dict(environment or {}) | {PARENT_PIPE: str(parent_pipe)}
        with self._partial(command).open("ab") as stdout:
            self._lock(stdout, command)  # inherited by the child, which holds it until it ends
            stdout.truncate(0)
            with self.log(command).open("wb") as stderr:
                return subprocess.Popen(arguments, stdout=stdout, stderr=stderr, env=variables, pass_fds=[parent_pipe])

    def _lock(self, file: BinaryIO, command: Command) -> None:
        """Lock the output of a command; wait for the same command of a killed job, which is ending."""
        deadline = time.monotonic() + SECONDS_TO_END
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CommandFailedError(
                        f"{command} of an earlier run has not ended in {SECONDS_TO_END:.0f} s. End its process, and "
                        f"run the same command again (see {self.log(command)})."
                    ) from None
            if not waiting:
                print(f"waiting for {command} of an earlier run to end", file=sys.stderr, flush=True)
                waiting = True
            time.sleep(0.1)


def _wait_for_any(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until one of several processes has ended; return its index."""
    while True:
        for index, process in enumerate(processes):
            if process.poll() is not None:
                return index
        time.sleep(0.05)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM; do nothing outside the main thread, where no handler can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


@contextmanager
def claim_folder(folder: Path, marker: str, settings: Mapping[str, Any], job: str) -> Iterator[None]:
    """Lock the folder of a job, and record its settings in the file `marker`.

    Raises FolderLockedError if the job runs already, ValueError if the folder holds other files, or the same job with
    other settings.
    """
    with lock_folder(folder):
        path = folder / marker
        if path.is_file():
            changes = diff_configs(json.loads(path.read_text(encoding="utf-8")), settings)
            if changes:
                raise ValueError(
                    f"{folder} holds a {job} with other settings ({'; '.join(changes)}); "
                    "give another --out or remove the folder."
                )
        elif any(not entry.name.startswith(".lock") for entry in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no {job}; give another --out.")
        write_json(path, settings)
        yield
