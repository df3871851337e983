"""Ray actors in place of processes: the same bytes, the same retries, and a worker that dies costs only its shard."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import contents

import capfilt
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.engine import run as engine
from capfilt.engine.run import EngineConfig, run
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards

ray = pytest.importorskip("ray", reason="--engine ray needs the extra ray")

SHARDS = [f"{number:05d}" for number in range(5)]
HELPERS = str(Path(__file__).parents[2] / "helpers")


@pytest.fixture(scope="module")
def cluster(start_ray) -> Iterator[None]:
    """A small cluster of this machine, which the engine finds and leaves running."""
    paths = os.pathsep.join([str(Path(capfilt.__file__).parents[1]), HELPERS])
    start_ray(runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


@pytest.fixture
def toy(tmp_path: Path, cluster):
    from toy_stages import Toy

    return lambda **options: Toy(tmp_path, **options)


def test_failures_and_deaths_cost_their_shard_alone(toy, tmp_path: Path) -> None:
    stage = toy(fails=("00001",), fails_once=("00002",), dies_once=("00003",))
    summary = run(stage, SHARDS, workers=2, device="cpu", engine="ray", progress=False)
    assert summary.failed == {"00001": "ValueError: shard 00001 is bad"}
    assert (summary.done, summary.counts) == (4, {"pictures": 40, "odd": 1})
    tries = [len((tmp_path / f"{shard}.tries").read_text().split()) for shard in SHARDS]
    assert tries == [1, 2, 2, 2, 1]
    assert (tmp_path / "00000.upcoming").read_text() in SHARDS[1:]
    (tmp_path / "00001.txt").write_text("by hand")
    assert run(stage, SHARDS, workers=2, device="cpu", engine="ray", progress=False).skipped == 5
    assert ray.is_initialized()


def test_a_worker_that_is_given_up_makes_room_for_the_next(toy, tmp_path: Path) -> None:
    """An error that the worker did not catch leaves its actor alive, with the processors that its successor needs."""
    workers = int(ray.cluster_resources()["CPU"])
    stage = toy(interrupted_once=("00000", "00001"))
    summary = run(stage, SHARDS, workers=workers, device="cpu", engine="ray", progress=False)
    assert (summary.done, summary.failed) == (5, {})
    assert len((tmp_path / "00000.tries").read_text().split()) == 2


def test_what_no_retry_can_mend_is_raised(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a filter"):
        run(toy(setup_error="ValueError"), SHARDS, device="cpu", engine="ray", progress=False)
    with pytest.raises(OSError, match="No space left") as caught:
        run(toy(disk_full=("00000",)), SHARDS, device="cpu", engine="ray", progress=False)
    assert caught.value.filename == str(tmp_path / "00000.txt")


def test_without_ray_there_is_a_sentence(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"--engine ray needs Ray .*pip install 'capfilt\[ray\]'"):
        run(toy(), SHARDS, engine="ray", progress=False)


def actors() -> list[int]:
    """Process numbers of our actors that are at work."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::_Work.attempt"):
            found.append(int(path.parent.name))
    return found


def killing_one() -> tuple[threading.Thread, list[int]]:
    """A thread that kills an actor at work, and the list where it writes down which."""
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            for pid in actors()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.005)

    return threading.Thread(target=kill), killed


@pytest.mark.slow
def test_a_worker_killed_in_mid_shard_changes_no_byte(shards, tiny_blip: Path, cluster) -> None:
    """Of both stages: the bytes are those of a process here."""
    data = shards(4, 60)
    settings = {"data": str(data), "model": str(tiny_blip), "device": "cpu", "batch_size": 8}
    on_ray = {"engine": "ray", "workers": 2}
    caption_shards(CaptionConfig(**settings, name="here"), progress=False)
    filter_shards(FilterConfig(**settings, name="here", scores="here"), progress=False)

    for run_on_ray, told in (
        (lambda: caption_shards(CaptionConfig(**settings, **on_ray, name="ray"), progress=False), "captions"),
        (
            lambda: filter_shards(
                FilterConfig(**settings, **on_ray, name="ray", scores="ray", sources=["web", "here"]), progress=False
            ),
            "scores",
        ),
    ):
        killer, killed = killing_one()
        killer.start()
        summary = run_on_ray()
        killer.join()
        assert killed and summary["shards"] == {"done": 4, "skipped": 0, "failed": {}}
        assert contents(data / told / "ray") == contents(data / told / "here")
    verdicts = contents(data / "filtered" / "ray")
    assert {name: verdicts[name] for name in verdicts if name != "manifest.json"} == {
        name: data for name, data in contents(data / "filtered" / "here").items() if name != "manifest.json"
    }


def test_the_choice_of_engine_is_checked() -> None:
    with pytest.raises(ValueError, match="Unknown engine 'slurm'; choose 'local' or 'ray'"):
        run(None, SHARDS, engine="slurm")
    with pytest.raises(ValueError, match="rank must be 0 to world_size - 1, not 2 of 2"):
        EngineConfig(rank=2, world_size=2)
    assert engine.EngineConfig(rank=1, world_size=2).share(SHARDS) == ["00001", "00003"]
