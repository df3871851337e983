"""One pass writes the same captions and verdicts as two commands, byte for byte, also after kills and failures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blipcore.io.samples import TarSample
from capfilt.caption.captioner import Caption
from capfilt.caption.stage import CaptionStage, caption_shards
from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_explain, caption_and_filter
from capfilt.filter.score import ScoreStage, ScoreTable
from capfilt.filter.stage import filter_shards
from capfilt.pictures import read_ahead
from capfilt.pictures.decode import prepare_picture
from capfilt.pictures.shard_pass import PictureBatch
from capfilt.shards.format import write_shard

SHARDS, PICTURES = 3, 10


@pytest.fixture
def data(shards, drawn) -> Path:
    """A shard set in which a picture cannot be decoded."""
    folder = shards(SHARDS, PICTURES)
    write_shard(folder / "00001.tar", [*map(drawn, range(50, 58)), TarSample("broken", b"<html>", "a dog")])
    return folder


@pytest.fixture
def decoded(monkeypatch) -> Counter[int]:
    """Hash of the bytes of each decoded picture -> how often it has been decoded."""
    counts: Counter[int] = Counter()

    def decode_and_count(data: bytes, *arguments: Any) -> Any:
        counts[hash(data)] += 1
        return prepare_picture(data, *arguments)

    monkeypatch.setattr(read_ahead, "prepare_picture", decode_and_count)
    return counts


def config(data: Path, captioner: Path, model: Path, out: Path, **more) -> CaptionFilterConfig:
    captions = {"model": str(captioner), "name": "c", "generate": {"num_captions": 2}}
    settings = {"data": str(data), "model": str(model), "out": str(out), "device": "cpu", "batch_size": 4, **more}
    return CaptionFilterConfig(**settings, captioner=captions)


def in_two(config: CaptionFilterConfig) -> dict:
    caption_shards(config.captions(), progress=False)
    return filter_shards(config, progress=False)


def in_one(config: CaptionFilterConfig) -> dict:
    return caption_and_filter(config, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    """Name -> bytes, with the folder's own path replaced in the manifests."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(os.fsencode(folder), b"OUT")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def both(data: Path, tiny_captioner: Path, tiny_filter: Path, tmp_path: Path):
    """The summary of two commands, their settings, and the same settings for a folder that is not written yet."""
    two, one = (config(data, tiny_captioner, tiny_filter, tmp_path / name) for name in ("two", "one"))
    return in_two(two), two, one


def test_one_pass_writes_what_two_write_and_decodes_once(both, decoded: Counter[int]) -> None:
    expected, two, one = both
    summary = in_one(one)
    assert files(Path(one.out)) == files(Path(two.out)) and len(files(Path(one.out))) == 3 * (SHARDS + 1)
    assert set(decoded.values()) == {1} and len(decoded) > 2 * PICTURES
    assert summary["captions"]["counts"]["captions"] == 2 * (SHARDS * PICTURES - 2)
    assert {name: summary[name] for name in ("kept", "dropped", "by_source", "counts")} == {
        name: expected[name] for name in ("kept", "dropped", "by_source", "counts")
    }
    assert summary["by_source"]["c"]["texts"] == 2 * summary["by_source"]["web"]["texts"] - 2
    decoded.clear()
    again = in_one(one)
    assert again["shards"]["skipped"] == SHARDS and not decoded
    assert files(Path(one.out)) == files(Path(two.out))


@pytest.mark.slow  # seconds of imports in two processes
def test_two_workers_write_the_same(both) -> None:
    _, two, one = both
    one.workers = 2
    assert in_one(one)["shards"]["failed"] == {}
    assert files(Path(one.out)) == files(Path(two.out))


@pytest.mark.parametrize("rename", [2, 4, 5])
def test_a_run_stopped_at_any_rename_resumes(both, monkeypatch, rename: int) -> None:
    """The order is two manifests, then captions and scores of each shard; existing tables are not written again."""
    _, two, one = both
    replace, remaining = os.replace, [rename]

    class Killed(BaseException):
        pass

    def replace_or_die(*paths) -> None:
        remaining[0] -= 1
        if remaining[0] == 0:
            raise Killed
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_or_die)
    with pytest.raises(Killed):
        in_one(one)
    monkeypatch.undo()
    written = {path: path.stat().st_mtime_ns for path in Path(one.out).rglob("0*.parquet")}
    in_one(one)
    assert files(Path(one.out)) == files(Path(two.out))
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_shards_with_captions_are_only_scored(both, monkeypatch) -> None:
    _, two, one = both
    captions = one.captions()
    caption_shards(captions, progress=False)
    (Path(one.out) / "captions/c/00002.parquet").unlink()
    captioned: list[str] = []
    caption = CaptionStage.caption

    def caption_and_record(stage: CaptionStage, batch: PictureBatch) -> list[Sequence[Caption]]:
        captioned.extend(batch.keys)
        return caption(stage, batch)

    monkeypatch.setattr(CaptionStage, "caption", caption_and_record)
    in_one(one)
    assert captioned == [f"{number:06d}" for number in range(2000, 2000 + PICTURES)]
    assert files(Path(one.out)) == files(Path(two.out))


def test_lost_captions_are_written_again(both) -> None:
    _, two, one = both
    in_one(one)
    (Path(one.out) / "captions/c/00001.parquet").unlink()
    in_one(one)
    assert files(Path(one.out)) == files(Path(two.out))


def test_a_failed_shard_is_reported_and_run_again_the_next_time(both, monkeypatch) -> None:
    _, two, one = both
    begin_table = ScoreStage.begin_table

    def fail(stage: ScoreStage, shard: str, **options: Any) -> ScoreTable:
        if shard == "00001":
            raise RuntimeError("the GPU is lost")
        return begin_table(stage, shard, **options)

    monkeypatch.setattr(ScoreStage, "begin_table", fail)
    summary = in_one(one)
    assert summary["shards"]["failed"] == {"00001": "RuntimeError: the GPU is lost"}
    monkeypatch.undo()
    assert in_one(one)["shards"]["failed"] == {}
    assert files(Path(one.out)) == files(Path(two.out))


def test_thresholds_can_be_explained_before_any_is_used(both) -> None:
    _, _, one = both
    summary = caption_and_explain(one, progress=False)
    assert summary["texts"] > 3 * PICTURES and summary["captions"]["counts"]["captions"] > 0
    assert not (Path(one.out) / "filtered").exists()


def test_wrong_settings_raise(data: Path, tiny_captioner: Path, tiny_filter: Path, tmp_path: Path) -> None:
    given = {"data": str(data), "model": str(tiny_filter), "out": str(tmp_path / "out"), "device": "cpu"}
    for captioner, sentence in (
        ({"model": "m", "workers": 2}, "captioner: remove 'workers'; the filter's setting is used for both"),
        ({"model": "m", "generate": {"top": 1}}, r"captioner: Unknown setting 'generate\.top'.*top_"),
        ({"name": "c"}, "captioner: Setting 'model' is required"),
    ):
        with pytest.raises(ValueError, match=sentence):
            CaptionFilterConfig(**given, captioner=captioner)
    with pytest.raises(ValueError, match="writes captions 'c', but sources has no 'c'"):
        CaptionFilterConfig(**given, captioner={"model": "m", "name": "c"}, sources=["web"])
    swapped = CaptionFilterConfig(**given, captioner={"model": str(tiny_filter)})
    with pytest.raises(ValueError, match="captioning needs the text decoder"):
        in_one(swapped)
    assert not list(tmp_path.glob("out/*/*/*.parquet"))
