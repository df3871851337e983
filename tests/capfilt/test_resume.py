"""Kill captioning and filtering with SIGKILL wherever it hurts, run them again: the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import capfilt

SHARDS = 4

# Imports once and forks a child for every run, which saves seconds a kill. A child may be told to kill itself just
# before its n-th rename: the file is then written and synced, but not there.
LAUNCHER = """
import json, os, signal, sys
from capfilt.caption import CaptionConfig, caption_shards
from capfilt.config import resolve
from capfilt.filter import FilterConfig, filter_shards

COMMANDS = {"caption": (CaptionConfig, caption_shards), "filter": (FilterConfig, filter_shards)}

def launch(command, options, kill_at):
    replace, left = os.replace, [kill_at]
    def replace_or_die(*paths):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
    os.replace = replace_or_die
    config, function = COMMANDS[command]
    function(resolve(config, overrides=options), progress=False)

if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                launch(*json.loads(line))
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Launcher:
    """Runs `caption` and `filter` in processes that may be killed."""

    def __init__(self, folder: Path):
        script = folder / "launcher.py"
        script.write_text(LAUNCHER)
        root = str(Path(capfilt.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, command: str, options: dict, kill_at: int = 0) -> int:
        print(json.dumps([command, {"device": "cpu", **options}, kill_at]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self) -> int:
        return int(self.process.stdout.readline())

    def run(self, command: str, options: dict, kill_at: int = 0) -> int:
        self.start(command, options, kill_at)
        return self.end()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.process.stdin.close()
    launcher.process.wait(60)


@pytest.fixture(scope="module")
def undisturbed(write_shards, tiny_blip: Path, launcher: Launcher, tmp_path_factory) -> dict[str, bytes]:
    """The files of both commands when nothing happens to them."""
    data = write_shards(tmp_path_factory.mktemp("undisturbed") / "data", SHARDS, 24)
    for command in ("caption", "filter"):
        assert launcher.run(command, settings(data, tiny_blip)) == 0
    return files(data)


@pytest.fixture
def disturbed(shards) -> Path:
    """The same shard set, for a test to work on."""
    return shards(SHARDS, 24)


def settings(data: Path, model: Path, **more) -> dict:
    return {"data": str(data), "model": str(model), "name": "b", "batch_size": 8, **more}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def only(files: dict[str, bytes], stage: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith(stage) or name.endswith(".tar")}


def tables(folder: Path) -> int:
    return len(list(folder.rglob("[0-9]*.parquet")))


def test_caption_killed_between_writing_and_renaming(disturbed, tiny_blip, undisturbed, launcher: Launcher) -> None:
    options = settings(disturbed, tiny_blip)
    # renames of a whole run: manifest, four tables, manifest with counts
    for kill_at, tables_then in ((1, 0), (3, 1), (2, 2), (3, 4)):
        assert launcher.run("caption", options, kill_at) == -signal.SIGKILL
        assert tables(disturbed) == tables_then
        assert list(disturbed.rglob(".*.tmp")), "it was not killed in the middle of a write"
    assert launcher.run("caption", options) == 0
    assert files(disturbed) == only(undisturbed, "captions")


def test_filter_killed_between_writing_and_renaming(disturbed, tiny_blip, undisturbed, launcher: Launcher) -> None:
    options = settings(disturbed, tiny_blip)
    assert launcher.run("caption", options) == 0
    # renames of a whole run: manifest, four score tables, manifest with counts, and the same again for the verdicts
    for kill_at, tables_then in ((3, 1), (4, 4), (1, 4), (4, 5), (4, 8)):
        assert launcher.run("filter", options, kill_at) == -signal.SIGKILL
        assert tables(disturbed) - SHARDS == tables_then
    assert launcher.run("filter", options) == 0
    assert files(disturbed) == undisturbed


@pytest.mark.parametrize("command", ["caption", "filter"])
def test_killed_from_outside_with_two_workers(
    disturbed, tiny_blip, undisturbed, launcher: Launcher, command: str
) -> None:
    if command == "filter":
        assert launcher.run("caption", settings(disturbed, tiny_blip)) == 0
    before = tables(disturbed)
    child = launcher.start(command, settings(disturbed, tiny_blip, workers=2))
    deadline = time.monotonic() + 60
    while tables(disturbed) == before:
        assert time.monotonic() < deadline, "no table in a minute"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)  # the parent alone; its workers must notice by themselves
    assert launcher.end() == -signal.SIGKILL
    assert launcher.run(command, settings(disturbed, tiny_blip)) == 0
    assert files(disturbed) == (only(undisturbed, "captions") if command == "caption" else undisturbed)
