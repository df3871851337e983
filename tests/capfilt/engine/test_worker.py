"""Inside a worker: resources of a shard, kinds of outcomes, errors that can be pickled, devices and threads."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
from toy_stages import Toy

from blipcore.device import count_cores
from capfilt.engine.worker import (
    Progress,
    ShardOutcome,
    StageRunner,
    describe_error,
    limit_compute_threads,
    make_portable,
    worker_device,
)
from capfilt.errors import EngineError


def test_a_stage_gets_its_resources_and_reports_progress(tmp_path: Path) -> None:
    runner = StageRunner(Toy(tmp_path), "cpu", index=0)
    assert runner.setup() == ShardOutcome("ready")
    reports: list[Progress] = []
    outcome = runner.run("00001", next_shard="00002", report=reports.append)
    assert outcome == ShardOutcome("done", {"pictures": 10, "odd": 1})
    assert (tmp_path / "00001.txt").read_text() == f"00001 cpu {count_cores()}\n"
    assert (tmp_path / "00001.next").read_text() == "00002" and reports == [Progress(3)]
    assert runner.run("00002").kind == "done"  # without a next shard, and without a display


def test_outcomes_tell_a_bad_shard_from_a_fatal_error(tmp_path: Path) -> None:
    runner = StageRunner(Toy(tmp_path, fails=("00001",), disk_full=("00002",)), "cpu", index=0)
    runner.setup()
    assert runner.run("00001") == ShardOutcome("failed", "ValueError: shard 00001 is bad")
    assert runner.run("00002").kind == "fatal"
    outcome = StageRunner(Toy(tmp_path, setup_error="ValueError"), "cpu", index=0).setup()
    assert outcome.kind == "fatal" and isinstance(outcome.value, ValueError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineError("no room"), "fatal"),
        (OSError(errno.EROFS, "read-only", "/elsewhere"), "fatal"),
        (PermissionError(errno.EACCES, "denied", "OUT/00001.parquet"), "fatal"),
        (PermissionError(errno.EACCES, "denied", "/data/00001.tar"), "failed"),
        (FileNotFoundError(errno.ENOENT, "missing", "/data/00001.tar"), "failed"),
    ],
)
def test_errors_of_the_output_folder_are_fatal(tmp_path: Path, error: Exception, kind: str) -> None:
    class Failing(Toy):
        def run(self, shard: str, worker: object) -> dict[str, int]:
            if isinstance(error, OSError) and error.filename.startswith("OUT"):
                error.filename = error.filename.replace("OUT", str(tmp_path))
            raise error

    assert StageRunner(Failing(tmp_path), "cpu", index=0).run("00001").kind == kind


class LocalError(ValueError):
    """An exception that cannot be unpickled, because its constructor takes other arguments."""

    def __init__(self, number: int, word: str) -> None:
        super().__init__(f"{number} {word}")


def test_fatal_errors_survive_pickling_with_their_type() -> None:
    errors = [LocalError(3, "dogs"), EngineError("a"), ImportError("b"), KeyError("c")]
    types = [ValueError, EngineError, ImportError, RuntimeError]
    for error, kind in zip(errors, types, strict=True):
        copy = pickle.loads(pickle.dumps(make_portable(ShardOutcome("fatal", error)))).value
        assert type(copy) is kind and str(error) in str(copy)
    missing = FileNotFoundError(errno.ENOENT, "No such file", "a.tar")
    copy = pickle.loads(pickle.dumps(make_portable(ShardOutcome("fatal", missing)))).value
    assert type(copy) is FileNotFoundError and copy.filename == "a.tar"
    done = ShardOutcome("done", {"pictures": 1})
    assert make_portable(done) is done


def test_an_error_is_described_on_one_line() -> None:
    assert describe_error(ValueError("a\n  b")) == "ValueError: a b"
    assert describe_error(KeyError()) == "KeyError"


def test_gpus_are_assigned_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_device("cpu", 3) == "cpu"
    assert worker_device("auto", 0).split(":")[0] in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, not 'gpu'"):
        worker_device("gpu", 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [worker_device("auto", index) for index in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_device("cuda:1", 2) == "cuda:1"
    with pytest.raises(ValueError, match="The last CUDA device is cuda:1; use --device cpu or auto"):
        worker_device("cuda:2", 0)


def test_compute_threads_never_exceed_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_compute_threads(8)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    limit_compute_threads(1)
    assert os.environ["OMP_NUM_THREADS"] == "1"
