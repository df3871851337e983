"""Workers that are threads of this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toy_stages import Toy

from capfilt.engine.run import run_shards
from capfilt.engine.threads import ThreadPool
from capfilt.engine.worker import ShardOutcome


def test_shards_run_in_this_process(tmp_path: Path) -> None:
    summary = run_shards(Toy(tmp_path), ["00000", "00001"], workers=2, device="cpu", engine="threads", progress=False)
    assert summary.done == 2
    assert {path.read_text() for path in tmp_path.glob("*.tries")} == {f"{os.getpid()}\n"}


def test_stop_waits_for_the_current_shard(tmp_path: Path) -> None:
    pool = ThreadPool(Toy(tmp_path, seconds=0.2), "cpu")
    worker = pool.start(0)
    assert pool.wait() == [(worker, ShardOutcome("ready"))]
    pool.submit(worker, "00001", None)
    pool.stop()
    assert (tmp_path / "00001.txt").exists() and not worker.is_alive()


def test_an_exception_that_no_stage_raises_ends_the_run(tmp_path: Path) -> None:
    stage = Toy(tmp_path, interrupted_once=("00000",))
    with pytest.raises(BaseException, match="an exception that no stage raises"):
        run_shards(stage, ["00000", "00001"], workers=2, device="cpu", engine="threads", progress=False)
