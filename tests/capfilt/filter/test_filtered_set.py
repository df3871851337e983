"""Filtered sets: opened by folder or by shard set, and read shard by shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filtered_set import filter_set, write_set
from folders import rows_of

from capfilt.filter.decide import BestTexts
from capfilt.filter.filtered_set import FilteredSet, count_downloads


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawn: Callable) -> Path:
    folder = write_set(tmp_path_factory.mktemp("set") / "data", drawn, pictures=12)
    filter_set(folder, clip_threshold=0.2, best_of="clip")
    return folder


def test_a_shard_set_that_was_filtered_once_is_its_filtered_set(data: Path) -> None:
    filtered = FilteredSet.open(data)
    assert filtered == FilteredSet.open(str(data / "filtered" / "r1"))
    assert filtered.sources == ["web", "c"] and filtered.columns == ["itm", "itc", "clip"]
    assert filtered.limits == {"itm": 0.5, "clip": 0.2} and filtered.threshold == 0.5
    assert filtered.best == BestTexts(1, "clip", across_sources=False)
    assert filtered.images == data


def test_arrays_of_a_shard_agree_with_its_rows(data: Path) -> None:
    filtered = FilteredSet.open(data)
    shards = list(filtered.read_shards())
    assert [shard.shard for shard in shards] == ["00000", "00001"]
    rows = rows_of(filtered.folder)
    kept = np.concatenate([shard.kept for shard in shards])
    assert kept.tolist() == [row["keep"] for row in rows]
    assert [filtered.sources[n] for shard in shards for n in shard.source] == [row["source"] for row in rows]
    itm = np.concatenate([shard.values["itm"] for shard in shards])
    assert np.isnan(itm).tolist() == [row["itm"] is None for row in rows]
    decided_by_score = np.concatenate([shard.decided_by_score for shard in shards])
    assert (kept == (decided_by_score & (itm >= 0.5))).all()


def test_downloads_are_counted_by_status(data: Path, tmp_path: Path) -> None:
    assert count_downloads(data) == {"ok": 24, "not_found": 6}
    assert count_downloads(tmp_path) == {}


def test_errors_are_one_sentence(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "copy")
    for path in (copy / "filtered" / "r1").glob("*.parquet"):
        path.unlink()
    with pytest.raises(ValueError, match="has no table yet; repeat the `capfilt filter` command"):
        FilteredSet.open(copy)
    filter_set(copy, "r2")
    with pytest.raises(ValueError, match=r"has several filtered sets; give one of .*r1, .*r2"):
        FilteredSet.open(copy)
    with pytest.raises(ValueError, match=r"is not an output of `capfilt filter`; give DATA/filtered/NAME"):
        FilteredSet.open(data / "scores" / "s")
    with pytest.raises(FileNotFoundError, match="No folder at"):
        FilteredSet.open(tmp_path / "nowhere")
    (copy / "filtered" / "r2" / "manifest.json").write_text('{"stage": "filter"}')
    with pytest.raises(ValueError, match="lacks the settings of the filter; write the set again"):
        FilteredSet.open(copy / "filtered" / "r2")
