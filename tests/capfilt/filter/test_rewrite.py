"""Rewriting: a row per scored text, with its verdict and the origin of its picture; changed captions are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from filtered_set import write_set

from capfilt.engine.worker import Worker
from capfilt.filter.decide import BestTexts
from capfilt.filter.rewrite import RewriteStage
from capfilt.shards.format import filtered_schema
from capfilt.shards.further_columns import further_schema
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, sum_footer_counts, write_table

WORKER = Worker("cpu", 1)


@pytest.fixture
def stage(tmp_path: Path, drawn: Callable) -> RewriteStage:
    data = write_set(tmp_path / "data", drawn, pictures=12, shards=1)
    folder = data / "filtered" / "r1"
    folder.mkdir(parents=True)
    captions = {"web": None, "c": data / "captions" / "c"}
    scores = data / "scores" / "s"
    columns = ["itm", "itc", "clip"]
    return RewriteStage(
        ShardSet.open(data),
        scores,
        columns,
        captions,
        {"itm": 0.5},
        BestTexts(),
        folder,
        further_schema(ShardSet.open(data)),
    )


def test_every_text_is_a_row_with_verdict_and_origin(stage: RewriteStage) -> None:
    assert stage.run("00000", WORKER) == {"texts": 24}
    table = read_table(stage.output("00000"))
    assert table.schema == filtered_schema(["itm", "itc", "clip"])
    rows = table.to_pylist()
    assert all(row["keep"] == (row["reason"] == "kept") for row in rows)
    assert all(row["keep"] == ((row["itm"] or 0) >= 0.5) for row in rows if row["reason"] in ("kept", "itm<0.5"))
    images = {row["key"]: row for row in read_table(stage.images.table("00000")).to_pylist()}
    assert all((row["url"], row["sha256"]) == (images[row["key"]]["url"], images[row["key"]]["sha256"]) for row in rows)
    assert sum_footer_counts([stage.output("00000")]) == Counter(f"{row['source']}/{row['reason']}" for row in rows)


def test_texts_of_sources_not_requested_are_left_out(stage: RewriteStage) -> None:
    stage.captions = {"web": None}
    assert stage.run("00000", WORKER) == {"texts": 12}
    assert set(read_table(stage.output("00000"))["source"].to_pylist()) == {"web"}


def test_origins_are_null_without_a_table_of_the_shard(stage: RewriteStage) -> None:
    stage.images.table("00000").unlink()
    stage.run("00000", WORKER)
    assert read_table(stage.output("00000"))["url"].null_count == 24


def test_the_order_of_captions_may_change_but_not_their_texts(stage: RewriteStage) -> None:
    path = stage.captions["c"] / "00000.parquet"
    captions = read_table(path)
    write_table(path, captions.take(pa.array(range(len(captions) - 1, -1, -1))))
    assert stage.run("00000", WORKER) == {"texts": 24}
    texts = pa.array(["another text", *captions["text"].to_pylist()[1:]])
    write_table(path, captions.set_column(captions.column_names.index("text"), "text", texts))
    with pytest.raises(ValueError, match=r"00000\.parquet has changed since it was scored; delete .* --scores NAME"):
        stage.run("00000", WORKER)
