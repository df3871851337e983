"""Shards are skipped, retried and named; a worker that is killed costs nothing but its shard's time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

import capfilt
from capfilt.engine.run import _pick, run
from capfilt.engine.worker import describe, limit_threads, pick_device

SHARDS = [f"{number:05d}" for number in range(6)]
CREWS = [(1, "local"), (2, "local"), (2, "threads")]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from toy_stages import Toy

    return lambda **options: Toy(tmp_path, **options)


def outputs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


def tries(folder: Path, shard: str) -> int:
    return len((folder / f"{shard}.tries").read_text().split())


@pytest.mark.parametrize(("workers", "engine"), CREWS)
def test_every_shard_once_and_then_never_again(toy, tmp_path: Path, capsys, workers: int, engine: str) -> None:
    summary = run(toy(), SHARDS, workers=workers, device="cpu", engine=engine)
    assert (summary.done, summary.skipped, summary.failed) == (6, 0, {})
    assert summary.counts == {"pictures": 60, "odd": 3}
    assert outputs(tmp_path) == {f"{shard}.txt": f"{shard} cpu\n" for shard in SHARDS}
    assert "toy: 6 of 6 shards" in capsys.readouterr().err
    summary = run(toy(), SHARDS, workers=workers, device="cpu", engine=engine)
    assert (summary.done, summary.skipped) == (0, 6)
    assert "all 6 shards are done already" in capsys.readouterr().err
    assert [tries(tmp_path, shard) for shard in SHARDS] == [1] * 6


def hints(folder: Path) -> dict[str, str]:
    """What each shard's worker was told that it would do next."""
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.upcoming"))}


def test_a_worker_hears_what_it_will_do_next(toy, tmp_path: Path) -> None:
    run(toy(fails_once=("00002",)), SHARDS, device="cpu", progress=False)
    assert hints(tmp_path) == dict(zip(SHARDS, [*SHARDS[1:], ""], strict=True))


def test_what_a_busy_worker_would_do_next_is_done_by_one_that_has_nothing(toy, tmp_path: Path) -> None:
    summary = run(toy(slow=("00000",)), SHARDS, workers=2, device="cpu", progress=False)
    assert (summary.done, [tries(tmp_path, shard) for shard in SHARDS]) == (6, [1] * 6)
    workers = {shard: (tmp_path / f"{shard}.tries").read_text() for shard in SHARDS}
    expected = hints(tmp_path)["00000"]
    if expected:  # the other worker may have had time for all before this one was ready
        assert workers[expected] != workers["00000"]
    last = [shard for shard in SHARDS if hints(tmp_path)[shard] not in ("", expected)]
    assert all(workers[shard] == workers[hints(tmp_path)[shard]] for shard in last)


@pytest.mark.parametrize(
    ("queue", "others", "picked"),
    [
        ("abcd", "", ("a", "b")),
        ("abcd", "ac", ("b", "d")),
        ("ab", "a", ("b", None)),
        ("ab", "ab", ("b", None)),  # all are expected
        ("ab", "z", ("a", "b")),  # done by another in the meantime
    ],
)
def test_picking_leaves_what_others_expect(queue: str, others: str, picked: tuple[str, str | None]) -> None:
    assert _pick(deque(queue), {None, *others}) == picked


@pytest.mark.parametrize(("workers", "engine"), CREWS)
def test_failures_are_retried_then_named(toy, tmp_path: Path, capsys, workers: int, engine: str) -> None:
    stage = toy(fails=("00001",), fails_once=("00002",))
    summary = run(stage, SHARDS, workers=workers, device="cpu", engine=engine, retries=2)
    assert summary.failed == {"00001": "ValueError: shard 00001 is bad"}
    assert summary.done == 5
    assert (tries(tmp_path, "00001"), tries(tmp_path, "00002")) == (3, 2)
    assert "shard 00001 failed: ValueError: shard 00001 is bad" in capsys.readouterr().err


def test_a_killed_worker_costs_only_its_shard(toy, tmp_path: Path) -> None:
    summary = run(toy(dies=("00003",), dies_once=("00000", "00005")), SHARDS, workers=2, device="cpu", progress=False)
    assert list(summary.failed) == ["00003"]
    assert "SIGKILL" in summary.failed["00003"]
    assert summary.done == 5
    assert sorted(outputs(tmp_path)) == [f"{shard}.txt" for shard in SHARDS if shard != "00003"]
    assert [tries(tmp_path, shard) for shard in SHARDS] == [2, 1, 1, 2, 1, 2]


@pytest.mark.parametrize(("workers", "engine"), CREWS)
def test_what_no_retry_can_mend_is_raised(toy, tmp_path: Path, workers: int, engine: str) -> None:
    with pytest.raises(ValueError, match="give a filter"):
        run(toy(setup_error="ValueError"), SHARDS, workers=workers, device="cpu", engine=engine, progress=False)
    assert outputs(tmp_path) == {}
    with pytest.raises(OSError, match="No space left") as caught:
        run(toy(disk_full=("00000",)), SHARDS, workers=workers, device="cpu", engine=engine, progress=False)
    assert caught.value.filename == str(tmp_path / "00000.txt")


def test_workers_that_die_while_loading_end_the_run(toy) -> None:
    with pytest.raises(RuntimeError, match=r"SIGKILL.*--workers"):
        run(toy(setup_error="die"), SHARDS[:1], workers=2, retries=0, device="cpu", progress=False)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_worker_and_is_finished_by_the_next(toy, tmp_path: Path, stop: signal.Signals) -> None:
    script = (
        "import signal, sys, pathlib\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from toy_stages import Toy\nfrom capfilt.engine.run import run\n"
        "if __name__ == '__main__':\n"
        f"    run(Toy(pathlib.Path(sys.argv[1]), seconds=0.2), {SHARDS}, workers=2, device='cpu')\n"
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
    summary = run(toy(), SHARDS, workers=2, device="cpu", progress=False)
    assert summary.done + summary.skipped == 6
    assert summary.skipped > 0
    assert outputs(tmp_path) == {f"{shard}.txt": f"{shard} cpu\n" for shard in SHARDS}


def _command(pid: int) -> str:
    """Command line of a live process, empty for one that is gone or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_bad_arguments_are_sentences(toy) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run(toy(), SHARDS, workers=0)
    with pytest.raises(ValueError, match="Unknown engine 'slurm'"):
        run(toy(), SHARDS, engine="slurm")


def test_devices_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu", 3) == "cpu"
    assert pick_device("auto", 0).split(":")[0] in ("cpu", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [pick_device("auto", index) for index in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert pick_device("cuda:1", 2) == "cuda:1"
    with pytest.raises(ValueError, match="The last CUDA device is cuda:1; use --device cpu or auto"):
        pick_device("cuda:2", 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(8)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    limit_threads(1)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert describe(KeyError()) == "KeyError"
