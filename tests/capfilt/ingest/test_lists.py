"""Lists of any length are read a block at a time, from any place that fsspec knows, and come out whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.ingest import lists as listing
from capfilt.ingest.lists import Column, as_text, fingerprint, read_rows

COLUMNS = (Column("a URL", ("url",), None, "--url-col"), Column("a text", ("text",), None, "--text-col", needed=False))
ROWS = [(f'http://x/{number}, "é"', f"line\none {number} 北京 🐈 \\" * (number % 5)) for number in range(400)]


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
def test_rows_cut_by_a_block_come_out_whole(tmp_path: Path, monkeypatch, kind: str, block: int) -> None:
    monkeypatch.setattr(listing, "BLOCK", block)
    monkeypatch.setattr(listing, "PARQUET_ROWS", 7)
    assert list(read_rows(save(tmp_path / f"list.{kind}", kind), COLUMNS)) == ROWS


def test_a_mistake_far_down_is_told_when_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"url": "a"}\n' * 5_000 + "{\n")
    rows = read_rows(str(tmp_path / "list.jsonl"), COLUMNS)
    with pytest.raises(ValueError, match="cannot be read as jsonl"):
        list(rows)


def test_a_broken_item_does_not_take_the_rest_into_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(listing, "BLOCK", 100)
    monkeypatch.setattr(listing, "LONGEST_ITEM", 1000)
    (tmp_path / "list.json").write_text('[{"url": "' + "x" * 5000 + '"}]')
    with pytest.raises(ValueError, match="cannot be read as json"):
        list(read_rows(str(tmp_path / "list.json"), COLUMNS))


def test_any_fsspec_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = save(tmp_path / "list.csv", "csv")
    monkeypatch.setenv("HOME", str(tmp_path))  # a YAML file has no shell to see to this
    assert list(read_rows("~/list.csv", COLUMNS)) == ROWS
    with fsspec.open("memory://lists/list.csv.gz", "wb") as file:
        file.write(gzip.compress(Path(local).read_bytes()))
    assert list(read_rows("memory://lists/list.csv.gz", COLUMNS)) == ROWS
    with pytest.raises(FileNotFoundError):
        list(read_rows("memory://lists/none.csv", COLUMNS))


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert fingerprint(str(tmp_path / "a")) == fingerprint(str(tmp_path / "b"))
    (tmp_path / "b").write_text("y")
    assert fingerprint(str(tmp_path / "a")) != fingerprint(str(tmp_path / "b"))


def test_values_become_texts() -> None:
    assert [as_text(value) for value in ("a", None, 3, ["a"], "\ud83d")] == ["a", None, "3", '["a"]', "?"]
    with pytest.raises(ValueError, match="not bytes"):
        as_text(b"a")


ROWS_AFTER = "http://h/1,one\nhttp://h/2,two\n"
UNCLOSED = {
    "to the end": 'url,caption\nhttp://a,"x y\n' + ROWS_AFTER,
    "to the next quote": 'url,caption\nhttp://a,"x y\n' + ROWS_AFTER + 'http://b,"z\n' + ROWS_AFTER,
    "of another column": 'url,alt,caption\nhttp://a,"x,y\nhttp://b,q,r\nhttp://c,"s,t\n',
    "before the url": 'caption,url\n"x,http://a\ny,http://b\n"z,http://c\n',
    "of a file name": 'image,caption\na.jpg,"x\nb c.JPG,y\nd.png,z\n',
}


@pytest.mark.parametrize("content", UNCLOSED.values(), ids=UNCLOSED)
def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    columns = (Column("a URL", ("url", "image"), None, ""), Column("a caption", ("caption",), None, "", needed=False))
    with pytest.raises(ValueError, match=r'a quote that is not closed, in the cell that begins \'"x'):
        list(read_rows(str(tmp_path / "list.csv"), columns))


def test_captions_may_have_lines_that_look_like_rows(tmp_path: Path) -> None:
    content = 'url,caption\nhttp://a,"a photo of ""it""\nhttp://x.org, CC-BY"\n' + ROWS_AFTER
    (tmp_path / "list.csv").write_text(content)
    columns = (Column("a URL", ("url",), None, ""), Column("a caption", ("caption",), None, ""))
    rows = list(read_rows(str(tmp_path / "list.csv"), columns))
    assert rows[0] == ("http://a", 'a photo of "it"\nhttp://x.org, CC-BY') and len(rows) == 3


def test_a_quote_that_is_not_closed_in_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BLOCK", 1 << 10)
    (tmp_path / "list.csv").write_text('url\nhttp://a\n"http://b\n' + "http://c\n" * 1000)
    with pytest.raises(ValueError, match=r"a row is longer than .* as where a quote is not closed"):
        list(read_rows(str(tmp_path / "list.csv"), (Column("a URL", ("url",), None, ""),)))
