"""Start-up and resuming open no file a shard; the benchmark's own arithmetic adds up."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import scale

from capfilt.caption.stage import CaptionConfig, CaptionStage, caption_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards

watching: list[tuple[str, Counter[str]]] = []  # a folder, and what has been opened or listed in it


def watch(event: str, arguments: tuple) -> None:
    if watching and event in ("open", "os.listdir", "os.scandir"):
        folder, counts = watching[0]
        if str(arguments[0]).startswith(folder):
            counts[f"{event} {Path(str(arguments[0])).suffix}".strip()] += 1


sys.addaudithook(watch)  # there is no way to take one off again; it does nothing while nobody watches


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run something until its first shard begins, and tell which kinds of files it has opened or listed."""

    def begin(self: CaptionStage, shard: str) -> None:
        raise KeyboardInterrupt(shard)

    def until_the_first_shard(function, *arguments) -> Counter[str]:
        watching.append((str(tmp_path), Counter()))
        monkeypatch.setattr(CaptionStage, "run", begin)
        try:
            function(*arguments, progress=False)
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.undo()
            _, counts = watching.pop()
        return counts

    return until_the_first_shard


def test_what_is_opened_before_the_first_shard_does_not_grow_with_their_number(tmp_path: Path, touched) -> None:
    seen = []
    for shards in (4, 40):
        data = tmp_path / str(shards)
        data.mkdir()
        scale.make_shards(data, shards, pictures=2)
        config = CaptionConfig(str(data), "nothing", name="x", device="cpu", dtype="fp32")
        judge = FilterConfig(data=str(data), model="nothing", name="x", device="cpu", dtype="fp32")
        with scale.no_models():
            fresh = touched(caption_shards, config)
            caption_shards(config, progress=False)
            filter_shards(judge, progress=False)
            (data / "captions" / "x" / "00001.parquet").unlink()
            resumed = touched(caption_shards, config)
            caption_shards(config, progress=False)
            again = touched(caption_shards, config), touched(filter_shards, judge)
        seen.append((fresh, resumed, *again))
        assert not any("tar" in kind for counts in seen[-1] for kind in counts)
    assert seen[0] == seen[1]
    assert sum(seen[0][0].values()) < 20


def test_the_benchmark_runs_and_its_sums_are_right(tmp_path: Path) -> None:
    scale.make_shards(tmp_path, 3, pictures=2)
    told = scale.run_stages(tmp_path)
    assert told["shards"] == 3 and told["peak MB"] > 0
    assert all(len(told[name]) == 2 for name in ("start", "end", "caption", "score", "rewrite", "resume"))
    tables = {name: {"rows/s": [1, 1_000_000], "bytes/row": 50.0} for name in ("captions", "filtered")}
    read = {"pictures/s": [1, 100]}
    told = scale.costs(10_000_000, rate=200.0, price=3.0, picture_bytes=50_000, tables=tables, read=read)
    assert (told["shards"], told["files"], told["pictures TB"]) == (1000, 5003, 0.5)
    assert (told["tables GB"], told["GPU hours"], told["money"]) == (2.5, 28, 83)
    assert (told["core hours of decoding"], told["cores beside a GPU"]) == (56, 2.0)
