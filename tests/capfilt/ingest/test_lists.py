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
from capfilt.ingest import lists
from capfilt.ingest.lists import ListColumn, as_text, file_fingerprint, read_columns

COLUMNS = (
    ListColumn("a URL", ("url",), None, "--url-col"),
    ListColumn("a text", ("text",), None, "--text-col", required=False),
)
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
def test_rows_are_complete_whatever_the_size_of_the_reads(tmp_path: Path, monkeypatch, kind: str, block: int) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", block)
    monkeypatch.setattr(lists, "PARQUET_ROWS", 7)
    assert list(read_columns(save(tmp_path / f"list.{kind}", kind), COLUMNS)) == ROWS


def test_an_error_in_a_later_row_is_raised_when_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"url": "a"}\n' * 5_000 + "{\n")
    rows = read_columns(str(tmp_path / "list.jsonl"), COLUMNS)
    with pytest.raises(ValueError, match="row 5000 is not valid JSON"):
        list(rows)


def test_a_broken_row_does_not_load_the_rest_of_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 100)
    monkeypatch.setattr(json_rows, "MAX_ROW_CHARACTERS", 1000)
    (tmp_path / "list.json").write_text('[{"url": "' + "x" * 5000 + '"}]')
    with pytest.raises(ValueError, match="row 0 is not valid JSON, or cut short"):
        list(read_columns(str(tmp_path / "list.json"), COLUMNS))


def test_lists_can_be_at_an_fsspec_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = save(tmp_path / "list.csv", "csv")
    monkeypatch.setenv("HOME", str(tmp_path))  # no shell expands the ~ of a YAML file
    assert list(read_columns("~/list.csv", COLUMNS)) == ROWS
    with fsspec.open("memory://lists/list.csv.gz", "wb") as file:
        file.write(gzip.compress(Path(local).read_bytes()))
    assert list(read_columns("memory://lists/list.csv.gz", COLUMNS)) == ROWS
    with pytest.raises(FileNotFoundError):
        list(read_columns("memory://lists/none.csv", COLUMNS))


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


FOLLOWING = "http://h/1,one\nhttp://h/2,two\n"
UNCLOSED = {
    "to the end": 'url,caption\nhttp://a,"x y\n' + FOLLOWING,
    "to the next quote": 'url,caption\nhttp://a,"x y\n' + FOLLOWING + 'http://b,"z\n' + FOLLOWING,
    "in another column": 'url,alt,caption\nhttp://a,"x,y\nhttp://b,q,r\nhttp://c,"s,t\n',
    "before the url": 'caption,url\n"x,http://a\ny,http://b\n"z,http://c\n',
    "in a list of file names": 'image,caption\na.jpg,"x\nb c.JPG,y\nd.png,z\n',
    "in a list of numbers": 'url,caption\n1,"x\n2,y\n3,"z\n',
}


@pytest.mark.parametrize("content", UNCLOSED.values(), ids=UNCLOSED)
def test_a_quote_that_is_not_closed_is_an_error(tmp_path: Path, content: str) -> None:
    """Otherwise it would swallow the rows up to the next quote."""
    (tmp_path / "list.csv").write_text(content)
    columns = (
        ListColumn("a URL", ("url", "image"), None, ""),
        ListColumn("a caption", ("caption",), None, "", required=False),
    )
    with pytest.raises(ValueError, match=r"list.csv, line 2: a quote is not closed"):
        list(read_columns(str(tmp_path / "list.csv"), columns))


def test_captions_may_have_lines_that_look_like_rows(tmp_path: Path) -> None:
    content = 'url,caption\nhttp://a,"a photo of ""it""\nhttp://x.org, CC-BY"\n\n' + FOLLOWING
    (tmp_path / "list.csv").write_text(content)
    columns = (ListColumn("a URL", ("url",), None, ""), ListColumn("a caption", ("caption",), None, ""))
    rows = list(read_columns(str(tmp_path / "list.csv"), columns))
    assert rows[0] == ("http://a", 'a photo of "it"\nhttp://x.org, CC-BY') and len(rows) == 3


def test_quotes_inside_a_line_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('url\nhttp://a/"b"\n"http://a/""c"" d" e\n')
    rows = list(read_columns(str(tmp_path / "list.csv"), (ListColumn("a URL", ("url",), None, ""),)))
    assert rows == [('http://a/"b"',), ('http://a/"c" d e',)]


def test_an_unclosed_quote_does_not_load_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_CELL", 1 << 10)
    (tmp_path / "list.csv").write_text('url\nhttp://a\n"http://b\n' + "http://c\n" * 1000)
    with pytest.raises(ValueError, match=r"list.csv, line 3: field larger than field limit .*; is a quote not closed"):
        list(read_columns(str(tmp_path / "list.csv"), (ListColumn("a URL", ("url",), None, ""),)))
