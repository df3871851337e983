"""Labels files: the accepted formats, their defaults, the split into halves, and the errors."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.filter.labels import held_out_mask, parse_target, read_labels


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"labels.{suffix}", [("00012", "c", 1, True), ("00013", "web", 0, False)]
    names = ["key", "source", "index", "match"]
    if suffix == "parquet":
        pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], names), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        separator = "," if suffix == "csv" else "\t"
        path.write_text("\n".join(separator.join(map(str, row)) for row in [names, *rows]) + "\n")
    assert read_labels(path).to_pylist() == [
        {"key": "00012", "source": "c", "index": 1, "match": 1},
        {"key": "00013", "source": "web", "index": 0, "match": 0},
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_source_and_index_default_to_the_web_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    if suffix == "csv":
        path.write_text("key,source,index,match\n7,,,1\n7,c,1,0\n7,,0,yes\n")
    else:
        path.write_text('{"key": "7", "match": true}\n{"key": "7", "source": "c", "index": 1, "match": false}\n')
    assert read_labels(path).to_pylist() == [
        {"key": "7", "source": "web", "index": 0, "match": 1},
        {"key": "7", "source": "c", "index": 1, "match": 0},
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "key,right\n1,1\n", "has no column 'match'; its columns are key, right"),
        ("labels.csv", "key,match\n1,maybe\n", "has the label 'maybe'; a label is 1 or 0"),
        ("labels.csv", "key,match\n,1\n", "a label without a key"),
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


def test_all_labels_of_a_picture_are_in_one_half_and_the_halves_are_equal() -> None:
    keys = pa.chunked_array([[f"{number // 2:09d}" for number in range(200)]])
    held_out = held_out_mask(keys)
    assert held_out.sum() == 100 and (held_out[::2] == held_out[1::2]).all()
    assert 15 < held_out[:100].sum() < 85  # drawn, not the first or the last half
    assert held_out_mask(keys.slice(100)).sum() == 50


def test_parse_target() -> None:
    assert parse_target("precision=0.9") == ("precision", 0.9)
    assert parse_target("recall=1") == ("recall", 1.0)
    for target in ("f1=0.9", "precision", "precision=0", "recall=1.1", "precision=high"):
        with pytest.raises(ValueError, match="target is precision=SHARE or recall=SHARE"):
            parse_target(target)
