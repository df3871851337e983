"""A plan becomes a tar and a table: every row has its outcome, and stored pictures are not converted again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import rows_of
from packing import pictures_of
from web import picture

from capfilt.engine.worker import Worker
from capfilt.ingest.keep_columns import FurtherColumns
from capfilt.ingest.plans import PLAN_SCHEMA, ROWS_FOLDER, sample_key, split_rows
from capfilt.ingest.shard_writer import OUTCOMES, ShardWriter, open_folders, open_manifest
from capfilt.shards.tables import read_table, sum_footer_counts, write_table


def write_plan(folder: Path, rows: list[dict[str, Any]]) -> None:
    plan = [{"key": f"{n:06d}", "status": "ok"} | row for n, row in enumerate(rows)]
    write_table(folder / "00000.parquet", pa.Table.from_pylist(plan, schema=PLAN_SCHEMA))


def write(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> dict[str, int]:
    (tmp_path / "out").mkdir()
    write_plan(tmp_path / "plans", rows)
    stage = ShardWriter(str(tmp_path / "plans"), str(tmp_path / "out"), **settings)
    stage.setup("cpu")
    return stage.run("00000", Worker("cpu", 1))


def test_every_row_has_its_outcome(tmp_path: Path) -> None:
    for name, data in (("good", picture(1, (40, 20))), ("bad", b"no picture"), ("tiny", picture(2, (5, 5)))):
        (tmp_path / name).write_bytes(data)
    bodies: list[dict[str, Any]] = [{"body": os.fsencode(tmp_path / name)} for name in ("good", "bad", "tiny", "none")]
    bodies[0] |= {"caption": "a text", "more": ["another"]}
    bodies += [{"status": "timeout", "error": "timed out"}, {"body": os.fsencode(tmp_path / ("x" * 300))}]
    (tmp_path / "captions").mkdir()
    counts = write(tmp_path, bodies, min_size=10, captions=str(tmp_path / "captions"))
    rows = rows_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "decode_error", "too_small", "not_found", "timeout", "not_found"]
    assert {row["status"] for row in rows} <= set(OUTCOMES)
    assert rows[2]["error"] == "5 x 5" and (rows[0]["width"], rows[0]["height"]) == (40, 20)
    assert counts["ok"] == counts["pictures"] == 1 and counts["rows"] == 6
    assert sum_footer_counts([tmp_path / "out" / "00000.parquet"])["not_found"] == 2
    (sample,) = [sample for sample in pictures_of(tmp_path / "out")]
    assert (sample.image, sample.text) == (picture(1, (40, 20)), "a text")
    assert sample.metadata["sha256"] == rows[0]["sha256"]
    captions = read_table(tmp_path / "captions" / "00000.parquet", ["key", "index", "text"]).to_pylist()
    assert captions == [{"key": "000000", "index": 0, "text": "another"}]


def test_a_picture_with_a_hash_is_stored_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"--stored--")
    row = {"body": os.fsencode(tmp_path / "a"), "offset": 2, "size": 6, "sha256": "0" * 64, "width": 7}
    write(tmp_path, [row])
    (sample,) = pictures_of(tmp_path / "out")
    assert sample.image == b"stored"
    assert rows_of(tmp_path / "out")[0]["width"] == 7


def split(staging: Path, rows: list[dict[str, Any]]) -> tuple[int, int]:
    result = split_rows(staging, iter(rows), PLAN_SCHEMA, 2, FurtherColumns([]))
    return result.rows, result.more


def test_rows_are_split_once(tmp_path: Path) -> None:
    rows = [{"url": str(n), "more": ["t"] * n} for n in range(5)]
    assert split(tmp_path, rows) == (5, 10)
    tables = sorted((tmp_path / ROWS_FOLDER).glob("*.parquet"))
    assert [len(read_table(table)) for table in tables] == [2, 2, 1]
    assert split(tmp_path, []) == (5, 10)
    (tmp_path / ROWS_FOLDER / "count.json").unlink()  # as after a kill
    assert split(tmp_path, rows[:1]) == (1, 0)
    assert len(list((tmp_path / ROWS_FOLDER).glob("*.parquet"))) == 1


def test_keys_are_those_of_img2dataset() -> None:
    assert [sample_key(row, 10_000) for row in (0, 12_345)] == ["000000000", "000012345"]
    assert [sample_key(row, 1) for row in (0, 7)] == ["00000", "00007"]
    assert [sample_key(row, 10) for row in (9, 10)] == ["000009", "000010"]


def test_an_unfinished_run_that_has_read_no_input_can_be_replaced(tmp_path: Path) -> None:
    with open_folders(str(tmp_path / "data")) as (out, staging):
        assert staging == tmp_path / "data" / ".staging"
        open_manifest(out, staging, "pack", {"shard_size": 2, "kind": "a"}, [])
        open_manifest(out, staging, "pack", {"shard_size": 2, "kind": "b"}, [])
        assert json.loads((tmp_path / "data" / "manifest.json").read_text())["config"]["kind"] == "b"
        split(staging, [{"url": "x"}])
        with pytest.raises(ValueError, match="other settings"):
            open_manifest(out, staging, "pack", {"shard_size": 2, "kind": "c"}, [])
