"""Workers that are processes: a death costs its shard alone, and cores are shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_stages import Toy

from blipcore.device import count_cores
from capfilt.engine import processes
from capfilt.engine.processes import ProcessPool, _describe_exit, _ProgressSender
from capfilt.engine.run import run_shards
from capfilt.engine.worker import Progress, ShardOutcome

SHARDS = [f"{number:05d}" for number in range(6)]


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Toy]:
    return lambda **options: Toy(tmp_path, **options)


def test_a_killed_worker_costs_only_its_shard(toy, tmp_path: Path) -> None:
    stage = toy(dies=("00003",), dies_once=("00000", "00005"))
    summary = run_shards(stage, SHARDS, workers=2, device="cpu", progress=False)
    assert list(summary.failed) == ["00003"]
    assert summary.failed["00003"] == "its worker died (SIGKILL, perhaps out of memory)"
    assert summary.done == 5
    assert sorted(path.stem for path in tmp_path.glob("*.txt")) == [shard for shard in SHARDS if shard != "00003"]
    tries = [len((tmp_path / f"{shard}.tries").read_text().split()) for shard in SHARDS]
    assert tries == [2, 1, 1, 2, 1, 2]


def test_workers_that_die_while_loading_end_the_run(toy) -> None:
    with pytest.raises(RuntimeError, match=r"SIGKILL.*--workers"):
        run_shards(toy(setup_error="die"), SHARDS[:1], workers=2, retries=0, device="cpu", progress=False)


def test_a_worker_reports_its_setup_progress_and_shard(toy, tmp_path: Path) -> None:
    """With more workers than cores, each has one core."""
    pool = ProcessPool(toy(), "cpu", workers=2 * count_cores())
    worker = pool.start(0)
    try:
        assert pool.wait() == [(worker, ShardOutcome("ready"))]
        pool.submit(worker, "00001", "00002")
        assert pool.wait() == [(worker, ShardOutcome("progress", Progress(3)))]
        assert pool.wait() == [(worker, ShardOutcome("done", {"pictures": 10, "odd": 1}))]
    finally:
        pool.stop()
    assert (tmp_path / "00001.txt").read_text() == "00001 cpu 1\n"
    assert (tmp_path / "00001.next").read_text() == "00002"
    assert not worker.process.is_alive()


def test_progress_is_sent_at_most_twice_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    class Pipe:
        def __init__(self) -> None:
            self.sent: list[ShardOutcome] = []

        def send(self, outcome: ShardOutcome) -> None:
            self.sent.append(outcome)

    clock, pipe = Clock(), Pipe()
    monkeypatch.setattr(processes, "time", clock)
    send = _ProgressSender(pipe)
    for _ in range(5):
        send(Progress(1, 0.5))
        clock.now += 0.2
    assert [outcome.value for outcome in pipe.sent] == [Progress(1, 0.5), Progress(3, 1.5)]


def test_exit_codes_are_named() -> None:
    assert [_describe_exit(code) for code in (3, -11, -200, None)] == [
        "exit code 3", "SIGSEGV", "signal 200", "exit code None"
    ]  # fmt: skip
