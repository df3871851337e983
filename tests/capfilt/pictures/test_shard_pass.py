"""While a shard's pictures are looked at the next shard is read, which changes no table and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from blipcore.io.samples import read_pictures
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.engine import run as engine
from capfilt.engine.run import run
from capfilt.engine.worker import attempt
from capfilt.pictures import read_ahead as readahead
from capfilt.pictures.read_ahead import Ready
from capfilt.pictures.shard_pass import Look
from capfilt.shards.shard_set import ShardSet

PICTURES = 6


def width(image: Any) -> int:
    return image.width


def height(image: Any) -> int:
    return image.height


@dataclass
class Stage:
    """Writes the keys of a shard's pictures."""

    images: ShardSet
    folder: Path
    name: str = "look"
    prepare: Callable[[Any], int] = width
    seen: list[str] = field(default_factory=list)
    see: Callable[[str], None] = lambda shard: None
    begin: Callable[[str], None] = lambda shard: None
    close: Callable[[str], None] = lambda shard: None

    def output(self, shard: str) -> Path:
        return self.folder / f"{shard}.txt"

    def setup(self, device: str) -> None:
        self.look = Look(self.images, batch_size=4)

    def run(self, shard: str) -> dict[str, int]:
        return self.look(shard, lambda: self.begin(shard) or [View(self, shard, self.prepare)])


@dataclass
class View:
    stage: Stage
    shard: str
    prepare: Callable[[Any], int]
    keys: list[str] = field(default_factory=list)

    def see(self, batch: Sequence[Ready[int]]) -> None:
        self.stage.see(self.shard)
        assert [one.input for one in batch] == [40] * len(batch)
        self.keys += [one.key for one in batch]

    def close(self, pictures: Mapping[str, int]) -> dict[str, int]:
        self.stage.close(self.shard)
        self.stage.output(self.shard).write_text(" ".join(self.keys))
        return dict(pictures)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards whose tars have been opened, in order."""
    names: list[str] = []
    read = read_pictures
    monkeypatch.setattr(readahead, "read_pictures", lambda tar, problems: names.append(tar.stem) or read(tar, problems))
    return names


@pytest.fixture
def stage(shards, tmp_path: Path) -> Stage:
    (tmp_path / "out").mkdir()
    return Stage(ShardSet.open(shards(4, PICTURES)), tmp_path / "out")


def written(stage: Stage) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(stage.folder.iterdir())}


def keys(shard: str) -> str:
    return " ".join(f"{1000 * int(shard) + number:06d}" for number in range(PICTURES))


def all_end() -> bool:
    """Whether no thread that reads or decodes is left, or soon will be."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(thread.name.startswith(("read", "decode")) for thread in threading.enumerate()):
            return True
        time.sleep(0.002)
    return False


def wait_for(opened: list[str], shard: str) -> None:
    deadline = time.monotonic() + 10
    while shard not in opened:
        assert time.monotonic() < deadline, f"{shard} is not opened"
        time.sleep(0.002)


def test_the_next_tar_is_opened_before_the_table_is_written_and_each_once(stage: Stage, opened: list[str]) -> None:
    following = dict(zip(stage.images.shards, stage.images.shards[1:], strict=False))
    stage.close = lambda shard: wait_for(opened, following[shard]) if shard in following else None
    summary = run(stage, stage.images.shards, device="cpu", progress=False)
    assert (summary.done, summary.counts["pictures"]) == (4, 4 * PICTURES)
    assert written(stage) == {shard: keys(shard) for shard in stage.images.shards}
    assert opened == stage.images.shards
    assert all_end()


def test_wrong_hints_cost_time_alone(stage: Stage, opened: list[str]) -> None:
    stage.setup("cpu")
    stage.close = lambda shard: wait_for(opened, {"00000": "00001", "00003": "00002"}.get(shard, shard))
    for shard, upcoming in (("00000", "00001"), ("00003", "00002"), ("00002", None), ("00002", None), ("00001", None)):
        assert attempt(stage, shard, upcoming=upcoming).kind == "done"
        assert upcoming or all_end()
    assert opened == ["00000", "00001", "00003", "00002", "00002", "00001"]
    assert written(stage) == {shard: keys(shard) for shard in stage.images.shards}


def test_pictures_prepared_for_others_are_read_anew(stage: Stage, opened: list[str]) -> None:
    stage.setup("cpu")
    stage.close = lambda shard: wait_for(opened, "00001")
    attempt(stage, "00000", upcoming="00001")
    stage.prepare = height
    assert attempt(stage, "00001").kind == "done"
    assert opened == ["00000", "00001", "00001"]
    assert all_end()


@pytest.mark.parametrize("where", ["begin", "see", "close"])
def test_a_shard_that_fails_is_done_again_and_the_next_one_is_not_harmed(stage: Stage, where: str) -> None:
    failed = []

    def fail_once(shard: str) -> None:
        if shard == "00001" and not failed:
            failed.append(shard)
            raise RuntimeError("the card fell off the bus")

    setattr(stage, where, fail_once)
    assert run(stage, stage.images.shards, device="cpu", progress=False).done == 4
    assert written(stage) == {shard: keys(shard) for shard in stage.images.shards}
    assert all_end()


def test_a_tar_that_is_missing_fails_alone(stage: Stage) -> None:
    stage.images.tar("00001").unlink()
    stage.images.tar("00003").unlink()
    summary = run(stage, stage.images.shards, device="cpu", progress=False)
    assert {shard: why.split(":")[0] for shard, why in summary.failed.items()} == {
        "00001": "FileNotFoundError",
        "00003": "FileNotFoundError",
    }
    assert written(stage) == {shard: keys(shard) for shard in ("00000", "00002")}
    assert all_end()


@pytest.mark.parametrize("where", ["begin", "see", "close"])
def test_an_interrupt_leaves_no_thread(stage: Stage, where: str) -> None:
    def interrupt(shard: str) -> None:
        if shard == "00001":
            raise KeyboardInterrupt

    setattr(stage, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(stage, stage.images.shards, device="cpu", progress=False)
    assert all_end()


def test_what_is_never_asked_for_goes_with_its_worker(stage: Stage, opened: list[str]) -> None:
    stage.setup("cpu")
    attempt(stage, "00000", upcoming="00001")
    wait_for(opened, "00001")
    del stage.look
    gc.collect()
    assert all_end()


def test_captions_are_the_same_without(shards, tiny_captioner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shards(3, 10)

    def captions(name: str) -> list[bytes]:
        config = CaptionConfig(str(data), str(tiny_captioner), name=name, device="cpu", batch_size=4)
        assert caption_shards(config, progress=False)["shards"]["done"] == 3
        return [path.read_bytes() for path in sorted((data / "captions" / name).glob("*.parquet"))]

    ahead = captions("ahead")
    monkeypatch.setattr(engine, "upcoming", lambda: None)
    assert captions("alone") == ahead
