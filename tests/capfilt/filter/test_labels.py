"""Labels files: the accepted formats, their defaults, the split into halves, and the errors."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.filter.labels import LabelMatcher, number_pictures, parse_target, read_labels

NAMES = ["shard", "key", "source", "index", "match"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"labels.{suffix}", [("00012", "c", 1, True, "00001"), ("00013", "web", 0, False, "a.tar")]
    names = ["key", "source", "index", "match", "shard"]
    if suffix == "parquet":
        pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], names), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        separator = "," if suffix == "csv" else "\t"
        path.write_text("\n".join(separator.join(map(str, row)) for row in [names, *rows]) + "\n")
    assert read_labels(path).select(NAMES).to_pylist() == [
        {"shard": "00001", "key": "00012", "source": "c", "index": 1, "match": 1},
        {"shard": "a", "key": "00013", "source": "web", "index": 0, "match": 0},
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_source_and_index_default_to_the_web_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    if suffix == "csv":
        path.write_text("key,source,index,match\n7,,,1\n7,c,1,0\n7,,0,yes\n")
    else:
        path.write_text('{"key": "7", "match": true}\n{"key": "7", "source": "c", "index": 1, "match": false}\n')
    assert read_labels(path).select(NAMES).to_pylist() == [
        {"shard": None, "key": "7", "source": "web", "index": 0, "match": 1},
        {"shard": None, "key": "7", "source": "c", "index": 1, "match": 0},
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "key,right\n1,1\n", "has no column 'match'; its columns are key, right"),
        ("labels.csv", "key,match\n1,maybe\n", "has the label 'maybe'; a label is 1 or 0"),
        ("labels.csv", "key,match\n,1\n", "a label without a key"),
        ("labels.csv", "key,match\n1,\n", "has a row without a label in the column 'match'"),
        ("labels.jsonl", '{"key": ["1"], "match": 1}', "Cannot read the column 'key' of"),
        ("labels.jsonl", '{"match": 1}', "has no column 'key'"),
        ("labels.csv", "key,index,match\n1,first,1\n", "Cannot read the column 'index' of"),
        ("labels.csv", "key,match\n1,1\n2,1\n1,0\n", "labels 1 web 0 both 1 and 0"),
        ("labels.xlsx", "x", "its name must end in .csv"),
        ("labels.jsonl", "{", "Cannot read"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_labels(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_all_labels_of_a_picture_have_one_number_and_the_numbers_are_drawn() -> None:
    keys = pa.array([f"{number // 2:09d}" for number in range(200)])
    labels = pa.table({"shard": pa.nulls(200, pa.string()), "key": keys})
    numbers = number_pictures(labels)
    assert sorted(set(numbers)) == list(range(100)) and (numbers[::2] == numbers[1::2]).all()
    assert 15 < (numbers[:100] % 2).sum() < 85  # not in the order of the file
    in_two_shards = pa.table({"shard": ["a", "b"] * 50, "key": ["0"] * 100})
    assert set(number_pictures(in_two_shards)) == {0, 1}  # two pictures


def test_further_columns_are_read_and_a_foreign_itm_is_not(tmp_path: Path) -> None:
    (tmp_path / "drawn.csv").write_text("key,match,drawn,itm\na,1,random,high\nb,0,uncertain,\nc,1,,\n")
    labels = read_labels(tmp_path / "drawn.csv")
    assert labels["drawn"].to_pylist() == ["random", "uncertain", None]
    assert labels["itm"].null_count == 3
    (tmp_path / "trained.csv").write_text("key,match,itm,itm_of\na,1,0.25,0123\n")
    trained = read_labels(tmp_path / "trained.csv").to_pylist()
    assert [(row["itm"], row["itm_of"]) for row in trained] == [(0.25, "0123")]


def texts_of(*keys: str) -> pa.Table:
    return pa.table({"key": keys, "source": ["web"] * len(keys), "index": pa.array([0] * len(keys), pa.int32())})


def labels_of(*labels: tuple[str | None, str, int]) -> pa.Table:
    shards, keys, match = zip(*labels, strict=True)
    table = texts_of(*keys).append_column("match", pa.array(match, pa.int8()))
    return table.append_column("shard", pa.array(shards, pa.string()))


def test_a_label_with_a_shard_fits_no_text_of_another_shard() -> None:
    matcher = LabelMatcher(labels_of(("00000", "0", 1), ("00001", "0", 0), ("00001", "1", 1), ("x", "1", 1)))
    assert matcher.find("00000", texts_of("0", "1")).tolist() == [0, -1]
    assert matcher.find("00001", texts_of("1", "0", "2")).tolist() == [2, 1, -1]
    assert matcher.found_count == 3


def test_a_label_without_a_shard_works_unless_its_key_repeats() -> None:
    matcher = LabelMatcher(labels_of((None, "0", 1), (None, "1", 0)))
    assert matcher.find("00000", texts_of("0", "2")).tolist() == [0, -1]
    assert matcher.find("00001", texts_of("1", "2")).tolist() == [1, -1]
    with pytest.raises(ValueError) as caught:
        matcher.find("00002", texts_of("0"))
    assert "key 0, source web, index 0 fits a text of 00000 and one of 00002" in str(caught.value)
    assert "add a column 'shard'" in str(caught.value)


def test_parse_target() -> None:
    assert parse_target("precision=0.9") == ("precision", 0.9)
    assert parse_target("recall=1") == ("recall", 1.0)
    for target in ("f1=0.9", "precision", "precision=0", "recall=1.1", "precision=high"):
        with pytest.raises(ValueError, match="target is precision=SHARE or recall=SHARE"):
            parse_target(target)


def test_unsure_labels_are_left_out_and_quoted_texts_may_have_line_breaks(tmp_path: Path) -> None:
    rows = ["shard,key,source,index,match,text", '0,a,web,0,1,"one\ntwo, three"', "0,b,web,0,unsure,x", "0,c,web,0,0,y"]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    assert read_labels(tmp_path / "labels.csv").select(["key", "match"]).to_pylist() == [
        {"key": "a", "match": 1},
        {"key": "c", "match": 0},
    ]
    (tmp_path / "none.csv").write_text("key,match\na,unsure\n")
    assert len(read_labels(tmp_path / "none.csv")) == 0
