"""Captions and verdicts from one pass are those of two, byte for byte, whatever happens on the way."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from blipcore.io.samples import Picture
from capfilt.caption.stage import Captions, CaptionStage, Said, caption_shards
from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_filter
from capfilt.filter.score import ScoreStage
from capfilt.filter.stage import explain_thresholds, filter_shards
from capfilt.pictures import read_ahead as readahead
from capfilt.pictures.decode import decode
from capfilt.shards.format import write_shard

SHARDS, PICTURES = 3, 10


@pytest.fixture
def data(shards, drawn) -> Path:
    """A shard set in which a picture cannot be decoded."""
    folder = shards(SHARDS, PICTURES)
    write_shard(folder / "00001.tar", [*map(drawn, range(50, 58)), Picture("broken", b"<html>", "a dog")])
    return folder


@pytest.fixture
def decoded(monkeypatch) -> Counter[int]:
    """How often pictures of each size in bytes have been decoded."""
    seen: Counter[int] = Counter()
    monkeypatch.setattr(readahead, "decode", lambda data: seen.update([hash(data)]) or decode(data))
    return seen


def config(data: Path, captioner: Path, judge: Path, out: Path, **more) -> CaptionFilterConfig:
    given = {"model": str(captioner), "name": "c", "generate": {"num_captions": 2}}
    settings = {"data": str(data), "model": str(judge), "out": str(out), "device": "cpu", "batch_size": 4, **more}
    return CaptionFilterConfig(**settings, captioner=given)


def in_two(config: CaptionFilterConfig) -> dict:
    caption_shards(config.captions(), progress=False)
    return filter_shards(config, progress=False)


def in_one(config: CaptionFilterConfig) -> dict:
    return caption_and_filter(config, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    """Name -> bytes; where the folder lies is left out of what manifests say."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(os.fsencode(folder), b"OUT")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def both(data: Path, tiny_captioner: Path, tiny_filter: Path, tmp_path: Path):
    """The same work for two folders: done by two commands, and not yet done."""
    two, one = (config(data, tiny_captioner, tiny_filter, tmp_path / name) for name in ("two", "one"))
    return in_two(two), two, one


def test_one_pass_writes_what_two_write_and_decodes_once(both, decoded: Counter[int]) -> None:
    told, two, one = both
    summary = in_one(one)
    assert files(Path(one.out)) == files(Path(two.out)) and len(files(Path(one.out))) == 3 * (SHARDS + 1)
    assert set(decoded.values()) == {1} and len(decoded) > 2 * PICTURES
    assert summary["captions"]["counts"]["captions"] == 2 * (SHARDS * PICTURES - 2)
    assert {name: summary[name] for name in ("kept", "dropped", "by_source", "counts")} == {
        name: told[name] for name in ("kept", "dropped", "by_source", "counts")
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
def test_stopped_at_any_rename_it_goes_on(both, monkeypatch, rename: int) -> None:
    """Two manifests, then captions and scores of each shard in turn: nothing that is there is made again."""
    _, two, one = both
    replace, left = os.replace, [rename]

    class Killed(BaseException):
        pass

    def replace_or_die(*paths) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_or_die)
    with pytest.raises(Killed):
        in_one(one)
    monkeypatch.undo()
    there = {path for path in Path(one.out).rglob("0*.parquet")}
    made = {path: path.stat().st_mtime_ns for path in there}
    in_one(one)
    assert files(Path(one.out)) == files(Path(two.out))
    assert {path: path.stat().st_mtime_ns for path in there} == made


def test_captions_that_are_there_are_only_scored(both, monkeypatch) -> None:
    _, two, one = both
    captions = one.captions()
    caption_shards(captions, progress=False)
    (Path(one.out) / "captions/c/00002.parquet").unlink()
    begun: list[str] = []
    begin = CaptionStage.begin

    def count(stage: CaptionStage, shard: str, said: Said) -> Captions:
        begun.append(shard)
        return begin(stage, shard, said)

    monkeypatch.setattr(CaptionStage, "begin", count)
    in_one(one)
    assert begun == ["00002"] and files(Path(one.out)) == files(Path(two.out))


def test_captions_that_were_lost_come_back(both) -> None:
    _, two, one = both
    in_one(one)
    (Path(one.out) / "captions/c/00001.parquet").unlink()
    in_one(one)
    assert files(Path(one.out)) == files(Path(two.out))


def test_a_shard_that_fails_is_named_and_done_the_next_time(both, monkeypatch) -> None:
    _, two, one = both
    begin = ScoreStage.begin

    def fail(stage: ScoreStage, shard: str, *made) -> object:
        if shard == "00001":
            raise RuntimeError("the card fell off the bus")
        return begin(stage, shard, *made)

    monkeypatch.setattr(ScoreStage, "begin", fail)
    summary = in_one(one)
    assert summary["shards"]["failed"] == {"00001": "RuntimeError: the card fell off the bus"}
    monkeypatch.undo()
    assert in_one(one)["shards"]["failed"] == {}
    assert files(Path(one.out)) == files(Path(two.out))


def test_thresholds_can_be_explained_before_anything_is_decided(both) -> None:
    _, _, one = both
    told = caption_and_filter(one, then=explain_thresholds, progress=False)
    assert told["texts"] > 3 * PICTURES and not (Path(one.out) / "filtered").exists()


def test_mistakes_are_sentences(data: Path, tiny_captioner: Path, tiny_filter: Path, tmp_path: Path) -> None:
    given = {"data": str(data), "model": str(tiny_filter), "out": str(tmp_path / "out"), "device": "cpu"}
    for captioner, sentence in (
        ({"model": "m", "workers": 2}, "captioner: leave out 'workers'; the filter's holds for both"),
        ({"model": "m", "generate": {"top": 1}}, r"captioner: Unknown setting 'generate\.top'.*top_"),
        ({"name": "c"}, "captioner: Setting 'model' is required"),
    ):
        with pytest.raises(ValueError, match=sentence):
            CaptionFilterConfig(**given, captioner=captioner)
    with pytest.raises(ValueError, match="captions 'c' are to be written, but sources leaves them out"):
        CaptionFilterConfig(**given, captioner={"model": "m", "name": "c"}, sources=["web"])
    swapped = CaptionFilterConfig(**given, captioner={"model": str(tiny_filter)})
    with pytest.raises(ValueError, match="captioning needs the text decoder"):
        in_one(swapped)
    assert not list(tmp_path.glob("out/*/*/*.parquet"))
