"""Further columns from an input to the filtered set and every export, by way of the shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import rows_of
from packing import pack_folder, pictures_of
from web import picture

from blipcore.io.samples import IndexedTar
from capfilt.export.stage import ExportConfig, export_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.report.stage import ReportConfig, write_report
from capfilt.shards.further_columns import further_schema, json_value, unify_types
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_schema

BOXES = [{"box": [1.5, 2.0], "score": 0.25}]


@pytest.fixture
def filtered(tmp_path: Path, tiny_filter: Path) -> Path:
    """Pack and filter three pictures of a JSON list with further columns."""
    rows: list[dict[str, Any]] = []
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
        row = {"file_name": f"{number}.jpg", "text": f"a red dog {number}", "uid": f"u{number}", "similarity": 0.5}
        rows.append(row | {"faces": BOXES[:number], "width": 640, "nsfw": None if number else "UNLIKELY"})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    pack_folder(tmp_path / "list.json", tmp_path / "data", shard_size=2)
    config = FilterConfig(data=str(tmp_path / "data"), model=str(tiny_filter), dtype="fp32", threshold=0.0)
    filter_shards(config, progress=False)
    return tmp_path / "data" / "filtered" / "capfilt"


def test_shards_and_filtered_tables_have_the_columns_with_their_types(filtered: Path) -> None:
    data = filtered.parents[1]
    assert [(row["uid"], row["faces"], row["input_width"], row["width"]) for row in rows_of(data)] == [
        ("u0", [], 640, 32), ("u1", BOXES, 640, 32), ("u2", BOXES, 640, 32),
    ]  # fmt: skip
    types = {field.name: field.type for field in further_schema(ShardSet.open(data))}
    box = pa.struct([("box", pa.list_(pa.float64())), ("score", pa.float64())])
    assert (types["uid"], types["similarity"], types["faces"]) == (pa.string(), pa.float64(), pa.list_(box))
    first, *_ = pictures_of(data)
    assert (
        first.metadata["uid"] == "u0" and first.metadata["input_width"] == 640 and first.metadata["nsfw"] == "UNLIKELY"
    )
    for number in (0, 1):
        schema = read_schema(filtered / f"0000{number}.parquet")
        assert {name: schema.field(name).type for name in types} == types
    assert [row["uid"] for row in rows_of(filtered)] == ["u0", "u1", "u2"]
    report = write_report(ReportConfig(str(filtered), out=str(filtered.parent / "report.html")))
    assert report["datasets"][0]["texts"] == 3


def test_every_export_has_the_columns(filtered: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for form in ("webdataset", "parquet", "json"):
        export_shards(ExportConfig(str(filtered), str(tmp_path / form), form), progress=False)
    with IndexedTar(tmp_path / "webdataset" / "00000.tar") as tar:
        metadata = [tar.read_metadata(members) for members in tar.samples.values()]
    assert [(row["uid"], row["faces"]) for row in metadata] == [("u0", []), ("u1", BOXES)]
    pairs = json.loads((tmp_path / "json" / "pairs.json").read_text())
    assert [(row["uid"], row["similarity"], row["nsfw"]) for row in pairs] == [
        ("u0", 0.5, "UNLIKELY"), ("u1", 0.5, None), ("u2", 0.5, None),
    ]  # fmt: skip
    loaded = datasets.load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[2]["faces"] == BOXES and isinstance(loaded.features["image"], datasets.Image)


def test_tables_of_img2dataset_give_one_type_over_all_shards(tmp_path: Path) -> None:
    columns = {"key": ["0"], "status": ["success"], "error_message": [None], "exif": ["{}"], "width": [4]}
    tables = [{"score": [1], "tag": [None], "raw": [b"x"]}, {"score": [0.5], "tag": ["a"], "mixed": ["b"]}]
    for number, further in enumerate(tables):
        (tmp_path / f"{number}.tar").touch()
        pq.write_table(pa.table(columns | further), tmp_path / f"{number}.parquet")
    (tmp_path / "2.tar").touch()
    (tmp_path / "2.parquet").write_text("damaged")
    schema = further_schema(ShardSet.open(tmp_path))
    assert schema == pa.schema([("score", pa.float64()), ("tag", pa.string()), ("mixed", pa.string())])


def test_types_that_no_type_holds_become_text() -> None:
    assert unify_types([pa.int64(), pa.list_(pa.int64())]) == pa.string()
    assert unify_types([pa.null()]) == pa.string()
    assert json_value({"a": [float("nan"), 1.5, None, pa.scalar(1)]}) == {"a": [None, 1.5, None, "1"]}
