"""Parquet and Arrow files: all types of text, repeated names, damage, and no more columns in memory than needed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from capfilt.ingest.lists.list_files import ListOptions
from capfilt.ingest.lists.rows import open_list


def save(path: Path, table: pa.Table) -> str:
    pq.write_table(table, path)
    return str(path)


def test_nested_cells_come_as_lists_and_dicts(tmp_path: Path) -> None:
    table = pa.table({"url": ["u"], "captions": [["a", "b"]], "box": [{"x": 1}], "f": pa.array([1.5], pa.float32())})
    rows = open_list(save(tmp_path / "a.parquet", table))
    assert [row.cells for row in rows.read(rows.names)] == [("u", ["a", "b"], {"x": 1}, 1.5)]
    assert rows.schema == table.schema


def test_a_repeated_name_is_an_error_only_where_it_is_used(tmp_path: Path) -> None:
    columns = [pa.array([value]) for value in ("u", "a", "b")]
    path = save(tmp_path / "a.parquet", pa.Table.from_arrays(columns, names=["url", "caption", "caption"]))
    assert [row.cells for row in open_list(path).read(["url"])] == [("u",)]
    with pytest.raises(ValueError, match=r"2 columns of the name 'caption'.*--columns"):
        list(open_list(path).read(["caption"]))
    renamed = open_list(path, ListOptions(columns=("url", "first", "second")))
    assert [row.cells for row in renamed.read(["url", "first"])] == [("u", "a")]


def test_a_file_without_columns_to_read_has_its_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"url": ["u", "v"]}))
    assert [row.cells for row in open_list(path).read([None])] == [(None,), (None,)]


def test_parts_may_have_their_columns_in_another_order(tmp_path: Path) -> None:
    save(tmp_path / "0.parquet", pa.table({"url": ["u"], "caption": ["a"]}))
    save(tmp_path / "1.parquet", pa.table({"n": [1], "caption": ["b"], "url": ["v"]}))
    assert [row.cells for row in open_list(str(tmp_path)).read(["url", "caption"])] == [("u", "a"), ("v", "b")]
    save(tmp_path / "2.parquet", pa.table({"url": ["w"]}))
    with pytest.raises(ValueError, match=r"2.parquet has no column 'caption'; it has url"):
        list(open_list(str(tmp_path)).read(["url", "caption"]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.arrow", b"ARROW1\0\0 and no more", "cannot be read as arrow"),
        ("a.arrow", b"no arrow at all", "cannot be read as arrow"),
        ("a.feather", b"FEA1" + bytes(60), "Feather version 1"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        open_list(str(tmp_path / name))
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_damaged_page_is_an_error_where_it_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://x/1"] * 9}), path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.parquet cannot be read as parquet: "):
        list(open_list(str(path)).read(["url"]))
