"""Proposals of texts to label: a random part, texts close to the threshold, texts whose scores disagree."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from filtered_set import filter_set, write_set

from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.propose import propose_labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawn) -> FilteredSet:
    folder = write_set(tmp_path_factory.mktemp("set") / "data", drawn)
    return FilteredSet.open(filter_set(folder))


def rows_by_id(data: FilteredSet) -> dict[tuple, dict]:
    shards = ((shard.shard, row) for shard in data.read_shards() for row in shard.table.to_pylist())
    return {(shard, row["key"], row["source"], row["index"]): row for shard, row in shards}


def test_a_quarter_is_random_and_the_rest_is_close_to_the_threshold_or_disputed(data: FilteredSet) -> None:
    rows, proposed = rows_by_id(data), propose_labels(data, 24, seed=1).to_pylist()
    ids = [(row["shard"], row["key"], row["source"], row["index"]) for row in proposed]
    assert len(set(ids)) == 24
    assert all(rows[text_id]["text"] == row["text"] for text_id, row in zip(ids, proposed, strict=True))
    kinds = Counter(row["drawn"] for row in proposed)
    assert kinds["random"] == 6 and kinds["uncertain"] == 9 and kinds["disagreement"] == 9
    by_kind = {kind: [i for i, row in zip(ids, proposed, strict=True) if row["drawn"] == kind] for kind in kinds}
    usable = [row for row in rows.values() if row["itm"] is not None and row["reason"] != "duplicate"]
    distance = np.median([abs(row["itm"] - 0.5) for row in usable])
    assert np.mean([abs(rows[text_id]["itm"] - 0.5) for text_id in by_kind["uncertain"]]) < distance
    assert [row["drawn"] for row in proposed] != sorted(row["drawn"] for row in proposed)  # mixed
    sources = Counter(source for _, _, source, _ in by_kind["uncertain"])
    assert set(sources) == set(data.sources)


def test_the_same_seed_proposes_the_same_texts_and_another_others(data: FilteredSet) -> None:
    first = propose_labels(data, 20, seed=1)
    assert propose_labels(data, 20, seed=1).equals(first)
    assert not propose_labels(data, 20, seed=2).equals(first)


def test_no_text_is_proposed_twice_or_without_a_score(data: FilteredSet) -> None:
    every = propose_labels(data, 10_000, seed=0)
    usable = [row for row in rows_by_id(data).values() if row["itm"] is not None and row["reason"] != "duplicate"]
    assert len(every) <= len(usable)
    assert len(set(zip(*(every[name].to_pylist() for name in ("shard", "key", "source")), strict=True))) == len(every)
