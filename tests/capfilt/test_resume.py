"""Runs that end by SIGKILL, a full disk or a lost folder write the same bytes when they are run again."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import contents

import capfilt
from blipcore.io.lock import FolderLockedError
from capfilt.caption.stage import CaptionConfig, CaptionStage, caption_shards
from capfilt.config import resolve
from capfilt.engine.worker import Worker
from capfilt.errors import EngineError
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards

SHARDS = 4

# Imports once and forks a child per run, which saves seconds per kill. With `kill_at`, a child kills itself just before
# that rename: the file is then written and synced, but not under its name.
LAUNCHER = """
import json, os, signal, sys
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_filter
from capfilt.config import resolve
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards

COMMANDS = {
    "caption": (CaptionConfig, caption_shards),
    "filter": (FilterConfig, filter_shards),
    "both": (CaptionFilterConfig, caption_and_filter),
}

def launch(command, options, kill_at, environment):
    os.environ.update(environment)
    replace, remaining = os.replace, [kill_at]
    def replace_or_die(*paths):
        remaining[0] -= 1
        if remaining[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
    os.replace = replace_or_die
    config, function = COMMANDS[command]
    function(resolve(config, overrides=options), progress=False)

if __name__ == "__main__":
    previous = None
    for line in sys.stdin:
        if previous:
            os.waitpid(previous, 0)
        previous = child = os.fork()
        if child == 0:
            try:
                launch(*json.loads(line))
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print("process", child, flush=True)
        # It is reaped when the next child starts. Until then its number is not reused, and killing it is harmless.
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        print("exit", ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)
"""


class Launcher:
    """Runs commands in processes that may be killed."""

    def __init__(self, folder: Path):
        script = folder / "launcher.py"
        script.write_text(LAUNCHER)
        root = str(Path(capfilt.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        self.environment: dict[str, str] = {}  # additional variables of later runs
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, command: str, options: dict, kill_at: int = 0) -> int:
        message = [command, {"device": "cpu", **options}, kill_at, self.environment]
        print(json.dumps(message), file=self.process.stdin, flush=True)
        return self._receive("process")

    def end(self) -> int:
        return self._receive("exit")

    def _receive(self, kind: str) -> int:
        received, number = self.process.stdout.readline().split()
        assert received == kind, "an earlier test has not waited for the end of its run"
        return int(number)

    def run(self, command: str, options: dict, kill_at: int = 0) -> int:
        self.start(command, options, kill_at)
        return self.end()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.process.stdin.close()
    launcher.process.wait(60)
    launcher.process.stdout.close()


@pytest.fixture(scope="module")
def undisturbed(write_shards, tiny_blip: Path, launcher: Launcher, tmp_path_factory) -> dict[str, bytes]:
    """Return the files of both commands without any kill."""
    data = write_shards(tmp_path_factory.mktemp("undisturbed") / "data", SHARDS, 24)
    for command in ("caption", "filter"):
        assert launcher.run(command, settings(data, tiny_blip)) == 0
    return contents(data)


@pytest.fixture
def disturbed(shards) -> Path:
    """Write the same shard set for one test."""
    return shards(SHARDS, 24)


def settings(data: Path, model: Path, **more) -> dict:
    return {"data": str(data), "model": str(model), "name": "b", "batch_size": 8, **more}


def only(files: dict[str, bytes], stage: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith(stage) or name.endswith(".tar")}


def tables(folder: Path) -> int:
    return len(list(folder.rglob("[0-9]*.parquet")))


def test_caption_killed_between_writing_and_renaming(disturbed, tiny_blip, undisturbed, launcher: Launcher) -> None:
    options = settings(disturbed, tiny_blip)
    # renames of a complete run: manifest, four tables, manifest with counts
    for kill_at, tables_then in ((1, 0), (3, 1), (2, 2), (3, 4)):
        assert launcher.run("caption", options, kill_at) == -signal.SIGKILL
        assert tables(disturbed) == tables_then
        assert list(disturbed.rglob(".*.tmp")), "it was not killed in the middle of a write"
    assert launcher.run("caption", options) == 0
    assert contents(disturbed) == only(undisturbed, "captions")


def test_filter_killed_between_writing_and_renaming(disturbed, tiny_blip, undisturbed, launcher: Launcher) -> None:
    options = settings(disturbed, tiny_blip)
    assert launcher.run("caption", options) == 0
    # renames of a complete run: manifest, four score tables, manifest with counts, then the same for the verdicts
    for kill_at, tables_then in ((3, 1), (4, 4), (1, 4), (4, 5), (4, 8)):
        assert launcher.run("filter", options, kill_at) == -signal.SIGKILL
        assert tables(disturbed) - SHARDS == tables_then
    assert launcher.run("filter", options) == 0
    assert contents(disturbed) == undisturbed


def test_one_pass_killed_between_writing_and_renaming(disturbed, tiny_blip, undisturbed, launcher: Launcher) -> None:
    options = settings(disturbed, tiny_blip, captioner={"model": str(tiny_blip), "name": "b"})
    # renames of a complete run: two manifests, captions and scores of each shard, manifest of the scores with counts,
    # those of the verdicts as above, manifest of the captions with counts
    for kill_at, tables_then in ((1, 0), (4, 1), (2, 2), (3, 4), (8, 9)):
        assert launcher.run("both", options, kill_at) == -signal.SIGKILL
        assert tables(disturbed) == tables_then
    assert launcher.run("both", options) == 0
    assert contents(disturbed) == undisturbed


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
    os.kill(child, signal.SIGKILL)  # the parent alone; its workers must notice
    assert launcher.end() == -signal.SIGKILL
    assert launcher.run(command, settings(disturbed, tiny_blip)) == 0
    assert contents(disturbed) == (only(undisturbed, "captions") if command == "caption" else undisturbed)


def rerun_until_done(data: Path, model: Path, undisturbed, launcher: Launcher, kills: int, seed: int, **more) -> None:
    """Run both commands with `kills` kills at random moments; compare the bytes whenever both are done."""
    rng, killed, longest = random.Random(seed), 0, 3.0
    while killed < kills:
        for folder in ("captions", "scores", "filtered"):
            shutil.rmtree(data / folder, ignore_errors=True)
        for command in ("caption", "filter"):
            code = -signal.SIGKILL
            while code:
                child, start = launcher.start(command, settings(data, model, **more)), time.monotonic()
                if killed < kills:
                    time.sleep(rng.uniform(0, longest))
                    os.kill(child, signal.SIGKILL)  # an ended child is not reaped yet
                code = launcher.end()
                assert code in (0, -signal.SIGKILL)
                killed += code != 0
                if code == 0:
                    longest = 0.8 * longest + 0.2 * 1.2 * (time.monotonic() - start)
        assert contents(data) == undisturbed


def test_killed_at_random_moments(disturbed, tiny_blip, undisturbed, launcher: Launcher) -> None:
    rerun_until_done(disturbed, tiny_blip, undisturbed, launcher, kills=3, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 105))
def test_killed_at_a_hundred_moments(disturbed, tiny_blip, undisturbed, launcher: Launcher, seed: int) -> None:
    rerun_until_done(disturbed, tiny_blip, undisturbed, launcher, kills=20, seed=seed, workers=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(200, 205))
def test_killed_at_a_hundred_moments_on_ray(
    disturbed, tiny_blip, undisturbed, launcher: Launcher, start_ray, seed: int
) -> None:
    ray = pytest.importorskip("ray", reason="--engine ray needs the extra ray")
    start_ray()
    try:
        launcher.environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        launcher.environment["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "disabled")  # as the cluster has it
        rerun_until_done(disturbed, tiny_blip, undisturbed, launcher, 20, seed, engine="ray", workers=2)
    finally:
        ray.shutdown()
        launcher.environment.clear()


def run_here(command: str, data: Path, model: Path, **more) -> dict:
    config, function = {"caption": (CaptionConfig, caption_shards), "filter": (FilterConfig, filter_shards)}[command]
    return function(resolve(config, overrides={"device": "cpu", **settings(data, model, **more)}), progress=False)


def test_ranks_write_the_same_bytes(disturbed, tiny_blip, undisturbed) -> None:
    done = []
    for command in ("caption", "filter"):
        for rank in (2, 0, 1):
            done.append(run_here(command, disturbed, tiny_blip, rank=rank, world_size=3)["shards"]["done"])
    assert done == [1, 2, 1] * 2
    assert contents(disturbed) == undisturbed


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_read_only_disk_ends_the_run_without_a_partial_file(
    disturbed, tiny_blip, undisturbed, monkeypatch, error: int
) -> None:
    replace, calls = os.replace, []

    def fail(source, target) -> None:
        calls.append(target)
        if len(calls) > 2:  # the manifest and a table
            raise OSError(error, os.strerror(error), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        run_here("caption", disturbed, tiny_blip)
    assert caught.value.filename.endswith("captions/b/00001.parquet") and len(calls) == 3
    assert sorted(path.name for path in (disturbed / "captions/b").iterdir()) == ["00000.parquet", "manifest.json"]
    monkeypatch.undo()
    run_here("caption", disturbed, tiny_blip)
    assert contents(disturbed) == only(undisturbed, "captions")


def test_a_folder_that_is_removed_under_a_run_ends_it(disturbed, tiny_blip, undisturbed, monkeypatch) -> None:
    run_shard = CaptionStage.run

    def run_and_remove(stage: CaptionStage, shard: str, worker: Worker) -> dict[str, int]:
        if shard == "00002":
            shutil.rmtree(disturbed / "captions")
        return run_shard(stage, shard, worker)

    monkeypatch.setattr(CaptionStage, "run", run_and_remove)
    with pytest.raises(EngineError, match="captions/b was removed while caption was writing it; run the command again"):
        run_here("caption", disturbed, tiny_blip)
    assert not (disturbed / "captions").exists()
    monkeypatch.undo()
    run_here("caption", disturbed, tiny_blip)
    assert contents(disturbed) == only(undisturbed, "captions")


def test_one_unreadable_shard_does_not_end_the_run(disturbed, tiny_blip) -> None:
    tar = disturbed / "00001.tar"
    tar.rename(disturbed / "away")
    tar.mkdir()  # unreadable for root too
    summary = run_here("caption", disturbed, tiny_blip)
    assert summary["shards"]["done"] == SHARDS - 1 and "Is a directory" in summary["shards"]["failed"]["00001"]
    manifest = json.loads((disturbed / "captions/b/manifest.json").read_text())
    assert manifest["failed"] == summary["shards"]["failed"] and "counts" not in manifest
    tar.rmdir()
    (disturbed / "away").rename(tar)
    assert run_here("caption", disturbed, tiny_blip)["shards"] == {"done": 1, "skipped": SHARDS - 1, "failed": {}}
    assert "failed" not in json.loads((disturbed / "captions/b/manifest.json").read_text())


def test_a_second_run_on_the_same_folder_exits(disturbed, tiny_blip, undisturbed, launcher: Launcher) -> None:
    launcher.start("caption", settings(disturbed, tiny_blip))
    deadline = time.monotonic() + 60
    while not tables(disturbed):
        assert time.monotonic() < deadline, "no table in a minute"
        time.sleep(0.001)
    with pytest.raises(FolderLockedError, match="captions/b is being written by process"):
        run_here("caption", disturbed, tiny_blip)
    assert launcher.end() == 0
    assert contents(disturbed) == only(undisturbed, "captions")
