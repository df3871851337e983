"""URL lists give the same rows in every format; invalid and private URLs are refused before any request."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.ingest.urls import encode_url, is_private_host, is_public, read_urls

ROWS = [("http://a.example/1.jpg", "one, two"), ("http://a.example/2,3.jpg", ""), ("http://a.example/ü.jpg", "北京 🐈")]


def save(path: Path, url: str = "url", caption: str = "caption") -> Path:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    objects = [{url: link, caption: text, "width": 3} for link, text in ROWS]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(objects), path)
        return path
    if kind in ("csv", "tsv"):
        mark = {"csv": ",", "tsv": "\t"}[kind]
        lines = [[url, "n", caption]] + [[link, "0012", text] for link, text in ROWS]
        text = "".join(mark.join(f'"{cell}"' for cell in line) + "\n" for line in lines)
    elif kind == "txt":
        text = "\n".join(link for link, _ in ROWS) + "\n\n"
    else:
        text = json.dumps(objects) if kind == "json" else "\n".join(map(json.dumps, objects))
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
def test_formats_and_usual_column_names(tmp_path: Path, kind: str) -> None:
    for url, caption in (("url", "caption"), ("URL", "TEXT"), ("image_url", "alt")):
        assert list(read_urls(str(save(tmp_path / f"list.{kind}", url, caption)))) == ROWS


def test_a_byte_order_mark_is_not_part_of_a_url(tmp_path: Path) -> None:
    for kind, text in (("txt", "http://x/1\n"), ("csv", "url\nhttp://x/1\n"), ("jsonl", '{"url": "http://x/1"}\n')):
        (tmp_path / f"list.{kind}").write_text(text, encoding="utf-8-sig")
        assert list(read_urls(str(tmp_path / f"list.{kind}"))) == [("http://x/1", None)]


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://x/1"] * 9}), path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.parquet cannot be read as parquet: "):
        list(read_urls(str(path)))


@pytest.mark.parametrize("kind", ["txt", "txt.gz"])
def test_plain_lines_may_hold_commas(tmp_path: Path, kind: str) -> None:
    assert list(read_urls(str(save(tmp_path / f"list.{kind}")))) == [(link, None) for link, _ in ROWS]


def test_named_columns_nulls_and_lone_surrogates(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"u": "http://x/1", "c": "bad \\ud83d"}\n{"u": null}\n{"u": "http://x/2", "c": ["a"]}\n')
    assert list(read_urls(str(path), "u", "c")) == [("http://x/1", "bad ?"), (None, None), ("http://x/2", '["a"]')]
    (tmp_path / "strings.json").write_text('["http://x/1"]')
    assert list(read_urls(str(tmp_path / "strings.json"))) == [("http://x/1", None)]


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("none.csv", None, {}, "No file at"),
        ("list.xls", "x", {}, "has an unknown format"),
        ("list.csv", "a,b\n1,2\n", {}, "no column that looks like a URL; it has a, b. Name the column with --url-col."),
        ("list.csv", "url,b\n1,2\n", {"caption_col": "c"}, r"no column 'c' \(--caption-col\); it has url, b"),
        ("list.csv", "url,b\n", {}, "has no rows"),
        ("list.csv", 'url,b\n"1,2\n3,4,5\n', {}, "line 2: a quote is not closed"),
        ("list.csv", "url,b\n1,2\n3,4,5\n", {}, "line 3: the row has 3 cells, but the header 2"),
        ("list.json", "[{", {}, "row 0 is not valid JSON, or cut short"),
        ("list.json", "{", {}, "must hold a list of rows, but begins with"),
        ("list.json", "[1]", {}, "must be a list of objects"),
        ("list.json", '{"url": ["http://x"]}', {}, "must hold a list of rows, but begins with"),
        ("list.json", '[{"url": "a"} {"url": "b"}]', {}, "row 1: no comma before it"),
        ("list.json", '[{"url": "a"}, "b"]', {}, "must be a list of objects"),
        ("list.tsv", 'url\ttext\na\t"one\nb\ttwo\nc\tsaid "x\n', {}, "line 2: a quote is not closed"),
        ("list.tsv", 'text\turl\n"one\ta\ntwo\tb\nsaid "x" y\tc\n', {}, "line 2: a quote is not closed"),
        ("list.json", "[]", {}, "has no rows"),
        ("list.json", '[{"url": "a"}]\n[{"url": "b"}]', {}, "continues after the end of its list"),
        ("list.csv", "", {}, "is empty"),
        ("list.parquet", "PAR1", {}, "cannot be read as parquet"),
        ("list.txt.gz", "plain", {}, "cannot be read as txt"),
        ("list.jsonl", '{"url": "a"}\n' + "[" * 200_000, {}, "row 1 is nested too deeply"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, name: str, content: str | None, options: dict[str, str], words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        list(read_urls(str(tmp_path / name), **options))
    assert "\n" not in str(caught.value)


def test_urls_are_encoded() -> None:
    assert encode_url(" HTTP://Host.Example/a b/ü.jpg?q=北 x#part ") == (
        "http://host.example/a%20b/%C3%BC.jpg?q=%E5%8C%97%20x"
    )
    assert encode_url("https://bücher.example:8080/%20x") == "https://xn--bcher-kva.example:8080/%20x"
    assert encode_url("http://[::1]:80/x") == "http://[::1]:80/x"
    for bad in (None, "", "  ", "cat.jpg", "file:///etc/passwd", "ftp://x/y", "http://", "http://a b/", "http://[::1"):
        with pytest.raises(ValueError):
            encode_url(bad)
    for bad in ("http://x:port/", "http://a..b/", f"http://{'a' * 64}.example/", "http://ü..b/"):
        with pytest.raises(ValueError):
            encode_url(bad)
    assert encode_url("http://a_b.example./x") == "http://a_b.example./x"


def test_private_addresses() -> None:
    for address in ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "0.0.0.0"):
        assert not is_public(address), address
        assert is_private_host(address), address
    for address in ("::ffff:127.0.0.1", "100.64.0.1", "224.0.0.1", "fc00::1", "64:ff9b::7f00:1", "2002:7f00:1::"):
        assert not is_public(address), address
    for address in ("fec0::1", "::127.0.0.1", "64:ff9b:1::7f00:1"):  # site-local, IPv4-compatible, local NAT64
        assert not is_public(address), address
    assert is_public("8.8.8.8") and is_public("64:ff9b::808:808")
    assert is_public("2606:4700::1111")
    assert is_private_host("LOCALHOST.")
    assert not is_private_host("example.org")
