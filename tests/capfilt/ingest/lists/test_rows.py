"""Lists of any length and format are read in small parts, from paths and fsspec URLs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blipcore.io import json_rows
from capfilt.ingest.lists import arrow_list, list_files
from capfilt.ingest.lists.list_files import ListOptions, file_fingerprint
from capfilt.ingest.lists.rows import as_text, open_list

ROWS = [(f'http://x/{number}, "é"', f"line\none {number} 北京 🐈 \\" * (number % 5)) for number in range(400)]


def read(path: str) -> list[tuple]:
    rows = open_list(path)
    return [row.cells for row in rows.read(["url", "text"])]


def save(path: Path, kind: str) -> str:
    objects = [{"n": {"url": "no"}, "url": url, "text": text} for url, text in ROWS]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(objects).drop(["n"]), path, row_group_size=33)
    elif kind == "csv":
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in ROWS]
        path.write_text("\ufeffurl,text\n" + "\n".join(quoted) + "\n", encoding="utf-8")
    elif kind == "json":
        path.write_text("\n [" + " ,\n".join(json.dumps(item, ensure_ascii=False) for item in objects) + "]\n")
    else:
        path.write_text("\n".join(map(json.dumps, objects)))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("block", [512, 4096])
def test_rows_are_complete_whatever_the_size_of_the_reads(tmp_path: Path, monkeypatch, kind: str, block: int) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", block)
    monkeypatch.setattr(list_files, "BLOCK_BYTES", block)
    monkeypatch.setattr(arrow_list, "ROWS", 7)
    assert read(save(tmp_path / f"list.{kind}", kind)) == ROWS


def test_lists_can_be_at_an_fsspec_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = save(tmp_path / "list.csv", "csv")
    monkeypatch.setenv("HOME", str(tmp_path))  # no shell expands the ~ of a YAML file
    assert read("~/list.csv") == ROWS
    with fsspec.open("memory://lists/list.csv.gz", "wb") as file:
        file.write(gzip.compress(Path(local).read_bytes()))
    assert read("memory://lists/list.csv.gz") == ROWS
    with pytest.raises(FileNotFoundError):
        read("memory://lists/none.csv")


def test_the_fingerprint_depends_on_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert file_fingerprint(str(tmp_path / "a")) == file_fingerprint(str(tmp_path / "b"))
    (tmp_path / "b").write_text("y")
    assert file_fingerprint(str(tmp_path / "a")) != file_fingerprint(str(tmp_path / "b"))


def test_cells_become_texts() -> None:
    assert [as_text(value) for value in ("a", None, 3, ["a"], "\ud83d")] == ["a", None, "3", '["a"]', "?"]
    with pytest.raises(ValueError, match="not bytes"):
        as_text(b"a")


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("parquet", ListOptions(quoting="none"), "--quoting does not apply to a parquet file"),
        ("parquet", ListOptions(encoding="cp1252"), "--encoding does not apply to a parquet file"),
        ("parquet", ListOptions(no_header=True), "--no-header does not apply to a parquet file"),
        ("json", ListOptions(columns=("a", "b")), "--columns does not apply to rows with names"),
        ("jsonl", ListOptions(quoting="double"), "--quoting does not apply to a JSON file"),
    ],
)
def test_an_option_that_does_not_apply_is_an_error(tmp_path: Path, kind: str, options: ListOptions, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_list(save(tmp_path / f"list.{kind}", kind), options)
