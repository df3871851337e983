"""Start-up and resuming do not open files per shard; the benchmark's own arithmetic is right."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scale

from capfilt.caption.stage import CaptionConfig, CaptionStage, caption_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards

# The folder under observation, and what was opened or listed in it.
observed: list[tuple[str, Counter[str]]] = []


def count_access(event: str, arguments: tuple[Any, ...]) -> None:
    if observed and event in ("open", "os.listdir", "os.scandir"):
        folder, counts = observed[0]
        if str(arguments[0]).startswith(folder):
            counts[f"{event} {Path(str(arguments[0])).suffix}".strip()] += 1


# An audit hook cannot be removed; this one does nothing while no folder is observed.
sys.addaudithook(count_access)


@pytest.fixture
def count_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Counter[str]]:
    """Return a function that runs a command until its first shard and counts the files that it opens or lists."""

    def stop(self: CaptionStage, shard: str, worker: Any) -> None:
        raise KeyboardInterrupt(shard)

    def run_until_first_shard(function: Callable[..., Any], *arguments: Any) -> Counter[str]:
        observed.append((str(tmp_path), Counter()))
        monkeypatch.setattr(CaptionStage, "run", stop)
        try:
            function(*arguments, progress=False)
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.undo()
            _, counts = observed.pop()
        return counts

    return run_until_first_shard


def test_files_opened_before_the_first_shard_do_not_grow_with_the_number_of_shards(
    tmp_path: Path, count_opened: Callable[..., Counter[str]]
) -> None:
    opened = []
    for shards in (4, 40):
        data = tmp_path / str(shards)
        data.mkdir()
        scale.make_shards(data, shards, pictures=2)
        caption_config = CaptionConfig(str(data), "nothing", name="x", device="cpu", dtype="fp32")
        filter_config = FilterConfig(data=str(data), model="nothing", name="x", device="cpu", dtype="fp32")
        with scale.no_models():
            fresh = count_opened(caption_shards, caption_config)
            caption_shards(caption_config, progress=False)
            filter_shards(filter_config, progress=False)
            (data / "captions" / "x" / "00001.parquet").unlink()
            resumed = count_opened(caption_shards, caption_config)
            caption_shards(caption_config, progress=False)
            repeated = count_opened(caption_shards, caption_config), count_opened(filter_shards, filter_config)
        opened.append((fresh, resumed, *repeated))
        assert not any("tar" in kind for counts in opened[-1] for kind in counts)
    assert opened[0] == opened[1]
    assert sum(opened[0][0].values()) < 20


def test_the_benchmark_runs_and_its_cost_table_is_right(tmp_path: Path) -> None:
    scale.make_shards(tmp_path, 3, pictures=2)
    seconds = scale.run_stages(tmp_path)
    assert seconds["shards"] == 3 and seconds["peak MB"] > 0
    assert all(len(seconds[name]) == 2 for name in ("start", "end", "caption", "score", "rewrite", "resume"))
    tables = {name: {"rows/s": [1, 1_000_000], "bytes/row": 50.0} for name in ("captions", "filtered")}
    read = {"pictures/s": [1, 100]}
    costs = scale.costs(10_000_000, rate=200.0, price=3.0, picture_bytes=50_000, tables=tables, read=read)
    assert (costs["shards"], costs["files"], costs["pictures TB"]) == (1000, 5003, 0.5)
    assert (costs["tables GB"], costs["GPU hours"], costs["money"]) == (2.5, 28, 83)
    assert (costs["core hours of decoding"], costs["cores beside a GPU"]) == (56, 2.0)
