"""A stage pulls pictures while the next shard is read ahead; this changes no output and leaves no thread."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from blipcore.io.samples import TarProblem, TarSample, read_samples
from blipcore.io.storage import AnyPath
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.cli import app
from capfilt.engine.run import run_shards
from capfilt.engine.worker import StageRunner, Worker
from capfilt.ingest.pack import PackConfig, pack
from capfilt.pictures import read_ahead
from capfilt.pictures.read_ahead import PreparedPicture
from capfilt.pictures.shard_pass import PictureBatch, PictureReader, PrepareEach
from capfilt.shards.format import write_shard
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table

PICTURES = 6


def width(image: Image.Image) -> int:
    return image.width


def height(image: Image.Image) -> int:
    return image.height


def do_nothing(shard: str) -> None:
    pass


@dataclass
class Keys:
    """A stage that writes the keys of a shard's pictures, with hooks."""

    images: ShardSet
    folder: Path
    name: str = "keys"
    prepare: Callable[[Image.Image], int] = width
    on_open: Callable[[str], None] = do_nothing
    on_batch: Callable[[str], None] = do_nothing
    on_write: Callable[[str], None] = do_nothing
    sizes: list[int] = field(default_factory=list)

    def output(self, shard: str) -> Path:
        return self.folder / f"{shard}.txt"

    def setup(self, device: str) -> None:
        self.pictures = PictureReader(self.images, ahead=8)

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        keys: list[str] = []
        with self.pictures.open(shard, self.prepare, next_shard=worker.next_shard, cores=worker.cores) as pictures:
            self.on_open(shard)
            for batch in pictures.batches(4):
                self.on_batch(shard)
                assert batch.inputs == [40] * len(batch)
                keys += batch.keys
                self.sizes.append(len(batch))
            self.on_write(shard)
            self.output(shard).write_text(" ".join(keys))
            return dict(pictures.counts)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards whose tars have been opened, in order."""
    names: list[str] = []

    def read_and_record(tar: AnyPath, problems: list[TarProblem]) -> Iterator[TarSample]:
        names.append(tar.stem)
        return read_samples(tar, problems)

    monkeypatch.setattr(read_ahead, "read_samples", read_and_record)
    return names


@pytest.fixture
def stage(shards, tmp_path: Path) -> Keys:
    (tmp_path / "out").mkdir()
    return Keys(ShardSet.open(shards(4, PICTURES)), tmp_path / "out")


@pytest.fixture
def runner(stage: Keys) -> StageRunner:
    runner = StageRunner(stage, "cpu", index=0)
    runner.setup()
    return runner


def outputs(stage: Keys) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(stage.folder.iterdir())}


def keys(shard: str) -> str:
    return " ".join(f"{1000 * int(shard) + number:06d}" for number in range(PICTURES))


def all_threads_end() -> bool:
    """Return True if all threads that read or decode end within ten seconds."""
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


def test_batches_are_full_of_decoded_pictures(tmp_path: Path, drawn) -> None:
    samples = [drawn(number) for number in range(20)]
    samples[3] = TarSample("bad", b"junk", "a text")
    samples[19] = TarSample("bad too", b"", None)
    write_shard(tmp_path / "00000.tar", samples)
    with PictureReader(ShardSet.open(tmp_path), ahead=64).open("00000", width) as pictures:
        batches = list(pictures.batches(4))
    assert [len(batch.keys) for batch in batches] == [4, 4, 4, 4, 2]
    assert [len(batch) for batch in batches] == [5, 4, 4, 4, 3]
    assert batches[0].keys == ["000000", "000001", "000002", "000004"] and batches[0].inputs == [40] * 4
    assert pictures.counts["pictures"] == 20 and pictures.counts["undecodable"] == 2


def test_a_batch_has_the_inputs_of_each_model() -> None:
    prepare = PrepareEach((width, height))
    assert prepare == PrepareEach((width, height)) != PrepareEach((height, width))
    pictures = [
        PreparedPicture("a", None, prepare(Image.new("RGB", (3, 5)))),
        PreparedPicture("b", None, None, "empty"),
    ]
    batch = PictureBatch(pictures)
    assert [batch.select(position).inputs for position in (0, 1)] == [[3], [5]]
    assert len(batch.select(1)) == 2 and batch.select(1).keys == ["a"]


def test_the_next_tar_is_opened_before_the_output_is_written_and_each_tar_once(stage: Keys, opened: list[str]) -> None:
    following = dict(zip(stage.images.shards, stage.images.shards[1:], strict=False))
    stage.on_write = lambda shard: wait_for(opened, following[shard]) if shard in following else None
    summary = run_shards(stage, stage.images.shards, device="cpu", progress=False)
    assert (summary.done, summary.counts["pictures"]) == (4, 4 * PICTURES)
    assert outputs(stage) == {shard: keys(shard) for shard in stage.images.shards}
    assert opened == stage.images.shards
    assert all_threads_end()


def test_a_wrong_next_shard_is_dropped(stage: Keys, runner: StageRunner, opened: list[str]) -> None:
    stage.on_write = lambda shard: wait_for(opened, {"00000": "00001", "00003": "00002"}.get(shard, shard))
    for shard, following in (("00000", "00001"), ("00003", "00002"), ("00002", None), ("00002", None), ("00001", None)):
        assert runner.run(shard, next_shard=following).kind == "done"
        assert following or all_threads_end()
    assert opened == ["00000", "00001", "00003", "00002", "00002", "00001"]
    assert outputs(stage) == {shard: keys(shard) for shard in stage.images.shards}


def test_pictures_prepared_for_another_model_are_read_again(
    stage: Keys, runner: StageRunner, opened: list[str]
) -> None:
    stage.on_write = lambda shard: wait_for(opened, "00001")
    runner.run("00000", next_shard="00001")
    stage.prepare = height
    assert runner.run("00001").kind == "done"
    assert opened == ["00000", "00001", "00001"]
    assert all_threads_end()


@pytest.mark.parametrize("hook", ["on_open", "on_batch", "on_write"])
def test_a_shard_that_fails_is_retried_and_the_next_one_is_not_affected(stage: Keys, hook: str) -> None:
    failed = []

    def fail_once(shard: str) -> None:
        if shard == "00001" and not failed:
            failed.append(shard)
            raise RuntimeError("the GPU is lost")

    setattr(stage, hook, fail_once)
    assert run_shards(stage, stage.images.shards, device="cpu", progress=False).done == 4
    assert outputs(stage) == {shard: keys(shard) for shard in stage.images.shards}
    assert all_threads_end()


def test_a_missing_tar_fails_alone(stage: Keys) -> None:
    for shard in ("00001", "00003"):
        (Path(str(stage.images.path)) / f"{shard}.tar").unlink()
    summary = run_shards(stage, stage.images.shards, device="cpu", progress=False)
    assert {shard: reason.split(":")[0] for shard, reason in summary.failed.items()} == {
        "00001": "FileNotFoundError",
        "00003": "FileNotFoundError",
    }
    assert outputs(stage) == {shard: keys(shard) for shard in ("00000", "00002")}
    assert all_threads_end()


@pytest.mark.parametrize("hook", ["on_open", "on_batch", "on_write"])
def test_an_interrupt_leaves_no_thread(stage: Keys, hook: str) -> None:
    def interrupt(shard: str) -> None:
        if shard == "00001":
            raise KeyboardInterrupt

    setattr(stage, hook, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_shards(stage, stage.images.shards, device="cpu", progress=False)
    assert all_threads_end()


def test_an_unused_next_shard_is_dropped_with_its_reader(stage: Keys, runner: StageRunner, opened: list[str]) -> None:
    runner.run("00000", next_shard="00001")
    wait_for(opened, "00001")
    del stage.pictures
    gc.collect()
    assert all_threads_end()


def test_captions_are_the_same_without_reading_ahead(
    shards, tiny_captioner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shards(3, 10)

    def captions(name: str) -> list[bytes]:
        config = CaptionConfig(str(data), str(tiny_captioner), name=name, device="cpu", batch_size=4)
        assert caption_shards(config, progress=False)["shards"]["done"] == 3
        return [path.read_bytes() for path in sorted((data / "captions" / name).glob("*.parquet"))]

    ahead = captions("ahead")
    open_shard = PictureReader.open
    monkeypatch.setattr(
        PictureReader, "open", lambda reader, shard, prepare, **_: open_shard(reader, shard, prepare, next_shard=None)
    )
    assert captions("alone") == ahead


# ---------------------------------------------------------------------------------------------------- lost pictures


@pytest.fixture
def packed(shards: Callable[[int, int], Path], tmp_path: Path) -> Path:
    """A packed set of two shards of 10 pictures."""
    pack(PackConfig(str(shards(2, 10)), str(tmp_path / "packed"), shard_size=10, workers=1), progress=False)
    return tmp_path / "packed"


def damage(folder: Path, how: str) -> None:
    tar = folder / "00001.tar"
    if how == "cut in half":
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    elif how == "empty":
        tar.write_bytes(b"")
    elif how == "no tar any more":
        tar.write_bytes(b"<html>502</html>" * 100)
    elif how == "a tar of some pictures":
        write_shard(tar, list(read_samples(tar))[::2])
    else:
        tar.unlink()


@pytest.mark.parametrize("how", ["cut in half", "empty", "no tar any more", "a tar of some pictures"])
def test_pictures_that_a_tar_has_lost_are_rows_and_an_error(packed: Path, tiny_blip: Path, how: str) -> None:
    damage(packed, how)
    remaining = sum(sample.error is None for sample in read_samples(packed / "00001.tar"))
    for command in ("caption", "filter"):
        result = CliRunner().invoke(app, [command, str(packed), "--model", str(tiny_blip), "--json"])
        assert result.exit_code == 1
        assert f"{10 - remaining} pictures of the shards' tables are not in their tars" in result.stderr
        counts = json.loads(result.stdout)["counts"]
        assert counts["missing"] == 10 - remaining
        assert (counts["pictures"], counts["undecodable"]) == (20, 10 - remaining)
    rows = read_table(packed / "filtered" / "capfilt" / "00001.parquet").to_pylist()
    lost = [row for row in rows if row["reason"] in ("undecodable: not_in_tar", "undecodable: truncated_tar")]
    assert {row["key"] for row in lost} == {f"{number:06d}" for number in range(10, 20)} - {
        sample.key for sample in read_samples(packed / "00001.tar") if sample.error is None
    }
    assert all(row["text"] for row in lost)  # of the shard's table


def test_a_shard_whose_tar_was_deleted_fails_by_name(packed: Path, tiny_blip: Path) -> None:
    damage(packed, "deleted")
    result = CliRunner().invoke(app, ["caption", str(packed), "--model", str(tiny_blip)])
    assert result.exit_code == 1
    assert "1 shard failed, first 00001" in result.stderr and "00001.tar" in result.stderr


def test_a_table_of_another_tar_adds_no_pictures(packed: Path, tiny_blip: Path) -> None:
    (packed / "00001.parquet").write_bytes((packed / "00000.parquet").read_bytes())
    assert CliRunner().invoke(app, ["caption", str(packed), "--model", str(tiny_blip)]).exit_code == 0
