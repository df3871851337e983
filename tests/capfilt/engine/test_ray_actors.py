"""Workers that are Ray actors write the same bytes as processes; a worker that dies costs only its shard."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from folders import contents
from toy_stages import Toy

import capfilt
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.engine.run import run_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards

ray = pytest.importorskip("ray", reason="--engine ray needs the extra ray")

SHARDS = [f"{number:05d}" for number in range(5)]
HELPERS = str(Path(__file__).parents[2] / "helpers")


@pytest.fixture(scope="module")
def cluster(start_ray) -> Iterator[None]:
    """Start a small local cluster."""
    paths = os.pathsep.join([str(Path(capfilt.__file__).parents[1]), HELPERS])
    start_ray(runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


@pytest.fixture
def toy(tmp_path: Path, cluster: None) -> Callable[..., Toy]:
    return lambda **options: Toy(tmp_path, **options)


def test_failures_and_deaths_cost_only_their_shard(toy, tmp_path: Path) -> None:
    stage = toy(fails=("00001",), fails_once=("00002",), dies_once=("00003",))
    summary = run_shards(stage, SHARDS, workers=2, device="cpu", engine="ray", progress=False)
    assert summary.failed == {"00001": "ValueError: shard 00001 is bad"}
    assert (summary.done, summary.counts) == (4, {"pictures": 40, "odd": 1})
    tries = [len((tmp_path / f"{shard}.tries").read_text().split()) for shard in SHARDS]
    assert tries == [1, 2, 2, 2, 1]
    assert (tmp_path / "00000.next").read_text() in SHARDS[1:]
    (tmp_path / "00001.txt").write_text("by hand")
    assert run_shards(stage, SHARDS, workers=2, device="cpu", engine="ray", progress=False).skipped == 5
    assert ray.is_initialized()


def test_an_abandoned_worker_frees_its_resources(toy, tmp_path: Path) -> None:
    """An uncaught exception leaves the actor alive, with the CPUs that its successor needs."""
    workers = int(ray.cluster_resources()["CPU"])
    stage = toy(interrupted_once=("00000", "00001"))
    summary = run_shards(stage, SHARDS, workers=workers, device="cpu", engine="ray", progress=False)
    assert (summary.done, summary.failed) == (5, {})
    assert len((tmp_path / "00000.tries").read_text().split()) == 2


def test_fatal_errors_are_raised(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a filter"):
        run_shards(toy(setup_error="ValueError"), SHARDS, device="cpu", engine="ray", progress=False)
    with pytest.raises(OSError, match="No space left") as caught:
        run_shards(toy(disk_full=("00000",)), SHARDS, device="cpu", engine="ray", progress=False)
    assert caught.value.filename == str(tmp_path / "00000.txt")


def test_a_missing_ray_raises_with_the_install_command(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"--engine ray needs Ray .*pip install 'capfilt\[ray\]'"):
        run_shards(toy(), SHARDS, engine="ray", progress=False)


def busy_actors() -> list[int]:
    """Return the process ids of actors that run a shard."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::RayWorker.run_shard"):
            pids.append(int(path.parent.name))
    return pids


def actor_killer() -> tuple[threading.Thread, list[int]]:
    """Return a thread that kills a busy actor, and a list for its process id."""
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            for pid in busy_actors()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.005)

    return threading.Thread(target=kill), killed


@pytest.mark.slow
def test_a_worker_killed_during_a_shard_changes_no_byte(shards, tiny_blip: Path, cluster: None) -> None:
    """The bytes of captions and scores are those of a local run."""
    data = shards(4, 60)
    settings = {"data": str(data), "model": str(tiny_blip), "device": "cpu", "batch_size": 8}
    on_ray = {"engine": "ray", "workers": 2}
    caption_shards(CaptionConfig(**settings, name="local"), progress=False)
    filter_shards(FilterConfig(**settings, name="local", scores="local"), progress=False)

    for run_on_ray, folder in (
        (lambda: caption_shards(CaptionConfig(**settings, **on_ray, name="ray"), progress=False), "captions"),
        (
            lambda: filter_shards(
                FilterConfig(**settings, **on_ray, name="ray", scores="ray", sources=["web", "local"]), progress=False
            ),
            "scores",
        ),
    ):
        killer, killed = actor_killer()
        killer.start()
        summary = run_on_ray()
        killer.join()
        assert killed and summary["shards"] == {"done": 4, "skipped": 0, "failed": {}}
        assert contents(data / folder / "ray") == contents(data / folder / "local")
    filtered, expected = contents(data / "filtered" / "ray"), contents(data / "filtered" / "local")
    del filtered["manifest.json"], expected["manifest.json"]  # they name different folders of scores
    assert filtered == expected
