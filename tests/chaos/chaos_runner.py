"""Runs commands through the server, kills them, and compares what the rerun leaves with an uninterrupted run."""

from __future__ import annotations

import getpass
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_commands import ENTRIES, VOLATILE, Entry
from chaos_inputs import write_inputs, write_loop
from chaos_server import descendants, describe
from vlm_server import KEY, VlmServer
from web import Web

import capfilt

ROOT = Path(capfilt.__file__).resolve().parents[1]
# What is killed: the command with all its processes, its own process alone, or one below it.
KINDS = ("group", "parent", "worker")
# Share of the tries that start a program instead of a fork.
PROGRAMS = 0.04
SECONDS_TO_END = 60.0  # for processes whose parent was killed, on a busy machine
# Of torch, in the folder of temporary files, for all its processes.
CACHES = {f"torchinductor_{getpass.getuser()}"}


class Server:
    """A process of `chaos_server.py`."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        program = str(Path(__file__).with_name("chaos_server.py"))
        self.process = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        assert self.answers.readline() == "ready\n"

    def ask(self, **request: Any) -> Any:
        print(json.dumps(request), file=self.requests, flush=True)
        return json.loads(self.answers.readline())

    def close(self) -> None:
        self.requests.close()
        self.process.wait(60)


@dataclass
class Result:
    """What was tried with an entry, and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    reruns: int = 0
    starts: int = 0  # as programs of their own, not as forks
    left: Counter[str] = field(default_factory=Counter)  # after a kill, until the rerun removed it
    problems: list[str] = field(default_factory=list)


class Chaos:
    """A folder with inputs, the results of uninterrupted runs, and a folder `work` in which commands are killed."""

    def __init__(self, folder: Path, url: str, chat: str, seed: int) -> None:
        self.folder, self.url, self.chat = folder, url, chat
        self.inputs, self.work, self.temporary = folder / "inputs", folder / "work", folder / "tmp"
        self.random = random.Random(seed)
        self.results: dict[str, Result] = {}
        self.server = Server()
        self.expected: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}
        self.environment = {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(self.temporary)}
        self.environment["OPENAI_API_KEY"] = KEY
        self.shared_memory = self._mount_shared_memory()
        write_inputs(self.inputs, url)

    def _mount_shared_memory(self) -> Path:
        """Return /dev/shm of the commands: their own, which no other program uses, if this is the root user."""
        folder = self.folder / "shm"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "none", str(folder)]
        self.is_mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        return folder if self.is_mounted else Path("/dev/shm")

    def close(self) -> None:
        self.server.close()
        if self.is_mounted:
            subprocess.run(["umount", str(self.shared_memory)], check=True)

    # --- one command ---

    def start(self, entry: Entry, **more: Any) -> int:
        places = {"inputs": self.inputs, "work": self.work, "url": self.url, "chat": self.chat}
        return self.server.ask(
            do="start",
            arguments=[argument.format(**places) for argument in entry.arguments],
            environment=self.environment | more.pop("environment", {}),
            folder=str(self.folder),
            stdout=str(self.folder / "stdout.txt"),
            stderr=str(self.folder / "stderr.txt"),
            shared_memory=str(self.shared_memory) if self.is_mounted else None,
            **more,
        )

    def wait(self, pid: int) -> int:
        return self.server.ask(do="wait", pid=pid)

    def run(self, entry: Entry, **more: Any) -> int:
        """Run a command to its end; return its exit code."""
        return self.wait(self.start(entry, **more))

    @property
    def messages(self) -> str:
        return (self.folder / "stderr.txt").read_text(errors="replace")

    def prepare(self, entry: Entry) -> None:
        """Empty the work folder and copy the result that the command starts from."""
        for folder in (self.work, self.temporary):
            folder.mkdir(exist_ok=True)
            for path in folder.iterdir():  # the folder itself may be a mount
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if entry.start is not None:
            shutil.copytree(self.folder / "results" / entry.start, self.work, dirs_exist_ok=True)
        if entry.name == "bootstrap":
            write_loop(self.work / "loop.yaml", self.inputs, self.work)

    def outputs(self, entry: Entry) -> dict[str, bytes]:
        """Return name -> bytes of the outputs, without those that differ between runs."""
        files = {}
        for output in entry.outputs:
            path = self.work / output
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                name = str(file.relative_to(self.work))
                if file.is_file() and not re.search(VOLATILE, name):
                    files[name] = file.read_bytes()
        return files

    def is_complete(self, entry: Entry) -> bool:
        return self.outputs(entry) == self.expected[entry.name]

    def learn(self, entry: Entry) -> None:
        """Run a command without a kill, and keep its result and time."""
        if entry.start is not None and entry.start not in self.expected:
            self.learn(next(other for other in ENTRIES if other.name == entry.start))
        if entry.name in self.expected:
            return
        self.prepare(entry)
        start = time.monotonic()
        code = self.run(entry)
        assert code == 0, f"{entry.name} exits with {code} without a kill: {self.messages[-2000:]}"
        self.seconds[entry.name] = time.monotonic() - start
        self.expected[entry.name] = self.outputs(entry)
        if entry.name in {other.start for other in ENTRIES}:
            shutil.copytree(self.work, self.folder / "results" / entry.name)

    # --- kills ---

    def try_once(self, entry: Entry, kills: int, kinds: tuple[str, ...] = KINDS) -> int:
        """Kill a command up to `kills` times, then run it to its end and compare; return the number of kills."""
        self.learn(entry)
        result = self.results.setdefault(entry.name, Result())
        self.prepare(entry)
        memory_before = set(os.listdir(self.shared_memory))
        killed = 0
        for _ in range(kills):
            kind, is_program = self.random.choice(kinds), self.random.random() < PROGRAMS
            pid = self.start(entry, exec=is_program)
            result.starts += is_program
            # Most of the time of a program is its start, so the seconds of a fork would seldom reach its end.
            time.sleep(self.random.uniform(0, 1.1 * self.seconds[entry.name] + 4 * is_program))
            kind, victim = self._kill(pid, kind)
            code = self.wait(pid)
            if kind == "worker" or code == -signal.SIGKILL:
                result.kills[kind] += 1
                killed += 1
            if code not in (0, -signal.SIGKILL):
                self._check_messages(f"after the kill of {victim}", result)
            self._check_survivors(entry, kind, result)
            for name in self._leftovers(memory_before):
                result.left[re.sub(r"[a-z0-9_]{8}$|\d+", "*", name)] += 1
            if code == 0:
                break
        self._finish(entry, result)
        remaining = self._leftovers(memory_before)
        if remaining:
            result.problems.append(f"left after the rerun: {', '.join(sorted(remaining)[:5])}")
            for name in remaining:
                with suppress(OSError):
                    (self.shared_memory / name).unlink()
        return killed

    def _kill(self, pid: int, kind: str) -> tuple[str, str]:
        """Kill a process, its group or one below it; return what was killed, with its command line."""
        workers = descendants(pid) if kind == "worker" else []
        victim = self.random.choice(workers) if workers else pid
        name = describe(victim)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL) if kind == "group" else os.kill(victim, signal.SIGKILL)
        return ("parent" if kind == "worker" and not workers else kind), name

    def _check_survivors(self, entry: Entry, kind: str, result: Result) -> None:
        """Wait until all processes of a killed command have ended."""
        deadline = time.monotonic() + SECONDS_TO_END
        while survivors := self.server.ask(do="orphans"):
            if time.monotonic() > deadline:
                result.problems.append(f"after a {kind} kill {len(survivors)} processes live: {survivors[0][1]}")
                for pid, _ in survivors:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                deadline += SECONDS_TO_END
            time.sleep(0.01)

    def _check_messages(self, when: str, result: Result) -> None:
        if "Traceback" in self.messages:
            result.problems.append(f"traceback {when}: {self.messages.strip().splitlines()[-1][:200]}")

    def _finish(self, entry: Entry, result: Result) -> None:
        code = self.run(entry)
        result.reruns += 1
        if code != 0 and not (entry.once and self.is_complete(entry)):
            result.problems.append(f"the rerun exits with {code}: {self.messages.strip()[-300:]}")
            return
        outputs, expected = self.outputs(entry), self.expected[entry.name]
        different = [
            name for name in sorted(outputs.keys() | expected.keys()) if outputs.get(name) != expected.get(name)
        ]
        if different:
            result.problems.append(f"{len(different)} files differ: {', '.join(different[:5])}")

    def _leftovers(self, memory_before: set[str]) -> set[str]:
        """Return the names left in the folder of temporary files and in shared memory."""
        return (set(os.listdir(self.temporary)) - CACHES) | (set(os.listdir(self.shared_memory)) - memory_before)


@contextmanager
def open_chaos(folder: Path, seed: int) -> Iterator[Chaos]:
    """Start the web server and the server of commands."""
    model = VlmServer()
    model.tops = lambda request: [{"Yes": -0.1 - len(request["prompt"]) % 7, "No": -1.0}]
    model.keeps_requests = False
    with Web() as web:
        chaos = Chaos(folder, web.url, model.url, seed)
        try:
            yield chaos
        finally:
            chaos.close()
            model.close()


def kill_until(chaos: Chaos, deadline: float, max_kills: int, only: str = "") -> Iterator[int]:
    """Try the entries whose names start with `only`, by their shares; yield the number of kills after each try."""
    kills = 0
    while True:
        deck = [entry for entry in ENTRIES if entry.name.startswith(only) for _ in range(entry.share)]
        chaos.random.shuffle(deck)
        for entry in deck:
            if time.monotonic() > deadline or kills >= max_kills:
                return
            kills += chaos.try_once(entry, kills=chaos.random.randint(1, 6))
            yield kills


def table(results: dict[str, Result]) -> list[str]:
    """Return the lines of a Markdown table of the tries."""
    lines = [
        "| command | kills of the group | of the parent | of a worker | reruns | files that differ, other faults |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|")
    sums = [0] * 5
    for name, result in sorted(results.items()):
        counts = [result.kills[kind] for kind in KINDS] + [result.reruns, len(result.problems)]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
    lines.append(f"| all: {sum(sums[:3])} kills | {' | '.join(map(str, sums))} |")
    return lines
