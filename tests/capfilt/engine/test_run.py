"""Shards are skipped, retried and reported; a killed run leaves no worker and can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_stages import LateFolder, Toy

import capfilt
from capfilt.engine.run import EngineConfig, pick_shards, run_shards
from capfilt.errors import EngineError

SHARDS = [f"{number:05d}" for number in range(6)]
POOLS = [(1, "local"), (2, "local"), (2, "threads")]


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Toy]:
    return lambda **options: Toy(tmp_path, **options)


def outputs(folder: Path) -> dict[str, str]:
    """Return shard -> device."""
    return {path.stem: path.read_text().split()[1] for path in sorted(folder.glob("*.txt"))}


def tries(folder: Path, shard: str) -> int:
    return len((folder / f"{shard}.tries").read_text().split())


@pytest.mark.parametrize(("workers", "engine"), POOLS)
def test_each_shard_is_run_once_and_then_skipped(toy, tmp_path: Path, capsys, workers: int, engine: str) -> None:
    summary = run_shards(toy(), SHARDS, workers=workers, device="cpu", engine=engine)
    assert (summary.done, summary.skipped, summary.failed) == (6, 0, {})
    assert summary.counts == {"pictures": 60, "odd": 3}
    assert outputs(tmp_path) == dict.fromkeys(SHARDS, "cpu")
    assert "toy: 6 of 6 shards" in capsys.readouterr().err
    summary = run_shards(toy(), SHARDS, workers=workers, device="cpu", engine=engine)
    assert (summary.done, summary.skipped) == (0, 6)
    assert "all 6 shards are done already" in capsys.readouterr().err
    assert [tries(tmp_path, shard) for shard in SHARDS] == [1] * 6


def next_shards(folder: Path) -> dict[str, str]:
    """Return shard -> next shard of its worker."""
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.next"))}


def test_a_worker_knows_its_next_shard(toy, tmp_path: Path) -> None:
    run_shards(toy(fails_once=("00002",)), SHARDS, device="cpu", progress=False)
    assert next_shards(tmp_path) == dict(zip(SHARDS, [*SHARDS[1:], ""], strict=True))


def test_an_idle_worker_takes_the_next_shard_of_a_busy_one(toy, tmp_path: Path) -> None:
    """The first shard waits until all others have begun, so the other worker must run them."""
    stage = toy(waits_for=(("00000", 6),))
    summary = run_shards(stage, SHARDS, workers=2, device="cpu", progress=False)
    assert (summary.done, [tries(tmp_path, shard) for shard in SHARDS]) == (6, [1] * 6)
    workers = {shard: (tmp_path / f"{shard}.tries").read_text() for shard in SHARDS}
    next_shard = next_shards(tmp_path)
    assert next_shard["00000"] in SHARDS[1:] and workers[next_shard["00000"]] != workers["00000"]
    assert len({workers[shard] for shard in SHARDS[1:]}) == 1
    # the other worker runs the shard that the busy one expects last
    order = sorted(SHARDS[1:], key=lambda shard: (tmp_path / f"{shard}.tries").stat().st_mtime_ns)
    assert order[-1] == next_shard["00000"]
    assert [next_shard[shard] for shard in order[:-2]] == order[1:-1]


@pytest.mark.parametrize(
    ("queue", "reserved", "picked"),
    [
        ("abcd", "", ("a", "b")),
        ("abcd", "ac", ("b", "d")),
        ("ab", "a", ("b", None)),
        ("ab", "ab", ("b", None)),  # all are reserved
        ("ab", "z", ("a", "b")),  # another worker has done z in the meantime
    ],
)
def test_reserved_shards_are_picked_last(queue: str, reserved: str, picked: tuple[str, str | None]) -> None:
    assert pick_shards(deque(queue), {None, *reserved}) == picked


@pytest.mark.parametrize(("workers", "engine"), POOLS)
def test_failures_are_retried_then_reported(toy, tmp_path: Path, capsys, workers: int, engine: str) -> None:
    stage = toy(fails=("00001",), fails_once=("00002",))
    summary = run_shards(stage, SHARDS, workers=workers, device="cpu", engine=engine, retries=2)
    assert summary.failed == {"00001": "ValueError: shard 00001 is bad"}
    assert summary.done == 5
    assert (tries(tmp_path, "00001"), tries(tmp_path, "00002")) == (3, 2)
    assert "shard 00001 failed: ValueError: shard 00001 is bad" in capsys.readouterr().err


@pytest.mark.parametrize(("workers", "engine"), [(1, "local"), (2, "local")])
def test_a_folder_that_was_not_made_yet_was_not_removed(tmp_path: Path, workers: int, engine: str) -> None:
    """A stage such as export makes the folder of its outputs with the first shard."""
    stage = LateFolder(tmp_path, fails=("00000",), dies_once=("00001",) if workers > 1 else ())
    summary = run_shards(stage, SHARDS[:3], workers=workers, device="cpu", engine=engine, progress=False)
    assert (summary.failed, summary.done) == ({"00000": "ValueError: shard 00000 is bad"}, 2)


def test_a_run_ends_when_its_folder_is_removed(tmp_path: Path) -> None:
    stage = LateFolder(tmp_path / "out", removes=("00000",))
    stage.folder.mkdir()
    with pytest.raises(EngineError, match=r"out was removed while toy was writing it; run the command again"):
        run_shards(stage, SHARDS, device="cpu", progress=False)


@pytest.mark.parametrize(("workers", "engine"), POOLS)
def test_fatal_errors_are_raised(toy, tmp_path: Path, workers: int, engine: str) -> None:
    with pytest.raises(ValueError, match="give a filter"):
        run_shards(toy(setup_error="ValueError"), SHARDS, workers=workers, device="cpu", engine=engine, progress=False)
    assert outputs(tmp_path) == {}
    with pytest.raises(OSError, match="No space left") as caught:
        run_shards(toy(disk_full=("00000",)), SHARDS, workers=workers, device="cpu", engine=engine, progress=False)
    assert caught.value.filename == str(tmp_path / "00000.txt")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_worker_and_the_next_run_resumes(toy, tmp_path: Path, stop: signal.Signals) -> None:
    script = (
        "import signal, sys, pathlib\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores SIGINT
        "from toy_stages import Toy\nfrom capfilt.engine.run import run_shards\n"
        "if __name__ == '__main__':\n"
        f"    run_shards(Toy(pathlib.Path(sys.argv[1]), seconds=0.2), {SHARDS}, workers=2, device='cpu')\n"
    )
    main = tmp_path / "main.py"
    main.write_text(script)
    command = [sys.executable, str(main), str(tmp_path)]
    root = Path(capfilt.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests' / 'helpers'}"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, env=environment)
    deadline = time.monotonic() + 60
    while not outputs(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert outputs(tmp_path), errors.decode()
    assert len(outputs(tmp_path)) < 6
    pids = {int(pid) for path in tmp_path.glob("*.tries") for pid in path.read_text().split()}
    while any(Path(f"/proc/{pid}").exists() and _command(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_command(pid) for pid in pids), "a worker has outlived its run"
    summary = run_shards(toy(), SHARDS, workers=2, device="cpu", progress=False)
    assert summary.done + summary.skipped == 6
    assert summary.skipped > 0
    assert outputs(tmp_path) == dict.fromkeys(SHARDS, "cpu")


def _command(pid: int) -> str:
    """Return the command line of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_invalid_arguments_raise(toy) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run_shards(toy(), SHARDS, workers=0)
    with pytest.raises(ValueError, match="Unknown engine 'slurm'; choose 'local' or 'ray'"):
        run_shards(toy(), SHARDS, engine="slurm")
    with pytest.raises(ValueError, match="rank must be 0 to world_size - 1, not 2 of 2"):
        EngineConfig(rank=2, world_size=2)


def test_ranks_share_all_shards() -> None:
    parts = [EngineConfig(rank=rank, world_size=4).shards_of_rank(SHARDS) for rank in range(4)]
    assert parts == [["00000", "00004"], ["00001", "00005"], ["00002"], ["00003"]]
