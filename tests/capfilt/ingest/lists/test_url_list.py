"""Lists as they are distributed and written by hand: the right captions, or a sentence; never rows without a word."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from capfilt.ingest.lists.list_files import ListOptions
from capfilt.ingest.lists.url_list import UrlList

U = "http://a.example/"


def texts(urls: UrlList) -> list[str | None]:
    return [row["caption"] for row in urls]


def save(path: Path, content: str | bytes | pa.Table | list | dict) -> str:
    """Write a list in the format of its suffix."""
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, (list, dict)):
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return str(path)


# ---------------------------------------------------------------------------------------------------- matrix

CAPTIONS = ["a red wall", "an été in Köln", "one, two; three"]
ENCODINGS = {"utf-8": "", "utf-8-sig": "", "utf-16": "", "utf-16-le": "", "cp1252": "cp1252"}
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
COMPRESSIONS[".zst"] = lambda data: pa.compress(data, codec="zstd", asbytes=True)
LAYOUTS = {
    "url, caption": ("url", "caption"),
    "caption, url": ("caption", "url"),
    "LAION": ("SAMPLE_ID", "URL", "TEXT"),
    "other names": ("photo", "what_it_shows_caption"),
    "with a hash": ("sha256", "url", "caption"),
}
VALUES = {"SAMPLE_ID": "17", "sha256": "ab" * 32}


def table_of(layout: tuple[str, ...]) -> list[dict[str, str]]:
    rows = []
    for number, caption in enumerate(CAPTIONS):
        url = f"{U}{number}.jpg"
        is_url = ("url", "photo")
        rows.append({name: VALUES.get(name) or (url if name.lower() in is_url else caption) for name in layout})
    return rows


def delimited(rows: list[dict[str, str]], mark: str, quote: str, header: bool, end: str) -> str:
    lines = [list(rows[0])] * header + [list(row.values()) for row in rows]
    quoted = [[f'"{cell}"' if quote == "all" or mark in cell else cell for cell in line] for line in lines]
    return "".join(mark.join(line) + end for line in quoted)


TEXT_CELLS = list(
    itertools.product(("csv", "tsv", "ssv.csv"), ("minimal", "all"), (True, False), ("\n", "\r\n", "\r"), LAYOUTS)
)


@pytest.mark.parametrize(("kind", "quote", "header", "end", "layout"), TEXT_CELLS)
def test_delimited_lists_of_every_kind(
    tmp_path: Path, kind: str, quote: str, header: bool, end: str, layout: str
) -> None:
    mark = {"csv": ",", "tsv": "\t", "ssv.csv": ";"}[kind]
    rows = table_of(LAYOUTS[layout])
    content = delimited(rows, mark, quote, header, end)
    for encoding, name in ENCODINGS.items():
        urls = UrlList(
            save(tmp_path / f"{encoding}.{kind}", content.encode(encoding)), options=ListOptions(encoding=name)
        )
        assert texts(urls) == CAPTIONS, (encoding, urls.account)
        assert urls.account.rows == urls.account.rows_with_text == 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["json", "jsonl", "ndjson", "lines.json", "columns.json", "wrapped.json", "tsv"])
def test_text_lists_in_every_compression(tmp_path: Path, kind: str, compression: str, layout: str) -> None:
    rows = table_of(LAYOUTS[layout])
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    content = {
        "json": json.dumps(rows, indent=1),
        "columns.json": json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
        "wrapped.json": json.dumps({"info": {"version": 1}, "annotations": rows}),
        "tsv": delimited(rows, "\t", "minimal", True, "\n"),
    }.get(kind, lines)
    path = tmp_path / f"list.{kind}{compression}"
    path.write_bytes(COMPRESSIONS[compression](content.encode()))
    assert texts(UrlList(str(path))) == CAPTIONS


TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("data_type", TYPES, ids=str)
@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow"])
def test_columnar_lists_of_every_type(tmp_path: Path, kind: str, data_type: pa.DataType) -> None:
    for number, layout in enumerate(LAYOUTS.values()):
        table = pa.Table.from_pylist(table_of(layout))
        for name in layout:
            if name not in VALUES:
                column = table[name].combine_chunks()
                column = column.dictionary_encode() if pa.types.is_dictionary(data_type) else column.cast(data_type)
                table = table.set_column(table.schema.get_field_index(name), name, column)
        path = tmp_path / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            open_writer = pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream
            with open_writer(str(path), table.schema) as writer:
                writer.write_table(table)
        assert texts(UrlList(str(path))) == CAPTIONS


# ---------------------------------------------------------------------------------------------------- published lists

PUBLISHED: dict[str, tuple[str, Any, list[str]]] = {
    "CC3M": (
        "Train_GCC-training.tsv",
        f"a bus station\t{U}1\nsierra looked\t{U}2\n",
        ["a bus station", "sierra looked"],
    ),
    "CC12M": ("cc12m.tsv", f'{U}1\ta "big" dog\n{U}2\t"Big Ben\n{U}3\t55" TV\n', ['a "big" dog', '"Big Ben', '55" TV']),
    "LAION": (
        "part-0.snappy.parquet",
        pa.table(
            {
                "SAMPLE_ID": [1.0],
                "URL": [f"{U}1"],
                "TEXT": ["a cat"],
                "HEIGHT": [3],
                "LICENSE": ["?"],
                "NSFW": ["UNLIKELY"],
            }
        ),
        ["a cat"],
    ),
    "COYO": (
        "0.parquet",
        pa.table({"id": [1], "url": [U], "text": ["a cat"], "text_length": [5], "image_phash": ["e1a" * 5]}),
        ["a cat"],
    ),
    "DataComp": (
        "0.parquet",
        pa.table(
            {"uid": ["ab" * 16], "url": [U], "text": ["a cat"], "face_bboxes": [[[0.0, 1.0]]], "sha256": ["ab" * 32]}
        ),
        ["a cat"],
    ),
    "RedCaps": (
        "cats_2020.json",
        {
            "info": {"url": "x"},
            "annotations": [{"image_id": "1", "url": U, "raw_caption": "A Cat", "caption": "a cat"}],
        },
        ["a cat"],
    ),
    "SBU": (
        "sbu.json",
        {"image_urls": [U, U], "user_names": ["me", "you"], "captions": ["one cat", "two"]},
        ["one cat", "two"],
    ),
    "BLIP": ("ccs_filtered.json", [{"url": U, "caption": "a cat"}], ["a cat"]),
    "COCO captions by URL": ("a.jsonl", f'{{"coco_url": "{U}1.jpg", "sentences": ["a", "b"]}}\n', ["a"]),
    "Wukong": ("wukong_0.csv", f"url,caption\n{U}1,红色的墙 一面\n", ["红色的墙 一面"]),
    "Excel in Europe": ("a.csv", f'url;caption\r\n{U}1;"rot; grün"\r\n', ["rot; grün"]),
    "Excel with its first line": ("a.csv", f"sep=;\r\nurl;caption\r\n{U}1;a, b\r\n", ["a, b"]),
    "a quoted first line": ("a.csv", f'\ufeff"sep=,"\r\nurl,caption\r\n{U}1,a cat\r\n', ["a cat"]),
    "ends of lines written twice": ("a.csv", f"url,caption\r\r\n{U}1,a cat\r\r\n", ["a cat"]),
    "commas between semicolons": ("a.csv", f"{U}1.jpg;a cat, red\n{U}2.jpg;a dog, old\n", ["a cat, red", "a dog, old"]),
    "a comma in the header": ("a.csv", f"caption;url;a, b\na cat;{U}1.jpg;1,5\n", ["a cat"]),
    "tabs and commas in a csv": ("a.csv", f'{U}1\t"Big Ben" by night, old\n', ['"Big Ben" by night, old']),
    "bars and semicolons": ("a.csv", f"{U}p;s=1/1.jpg|a cat|0\n{U}p;s=2/2.jpg|a dog|1\n", ["a cat", "a dog"]),
    "a file's name in a text of two lines": (
        "a.csv",
        f'caption,url\n"in a, x.jpg\nis a cat",{U}1\n',
        ["in a, x.jpg\nis a cat"],
    ),
    "URLs with commas": ("a.tsv", f"{U}w_1,h_2/1\ta cat\n{U}w_3,h_2/2\ta dog\n", ["a cat", "a dog"]),
    "an empty column of URLs": ("a.csv", f"image_url,url,title\n,{U}1,a cat\n", ["a cat"]),
    "pages and pictures": ("a.csv", f"url,image_url,title\nhttp://b.example/1,{U}1,a cat\n", ["a cat"]),
    "one word each": ("a.tsv", f"{U}1\tcat\n{U}2\tdog\n", ["cat", "dog"]),
    "brackets in texts": ("a.csv", f'url,caption\n{U}1,[untitled]\n{U}2,"[1, 2]"\n', ["[untitled]", "[1, 2]"]),
    "Excel's Unicode text": ("a.txt", f"url\tcaption\r\n{U}1\ta cat\r\n".encode("utf-16"), ["a cat"]),
    "written by hand": ("a.csv", f"url, caption\n{U}1, a red wall\n", ["a red wall"]),
    "delimiters at the ends of lines": ("a.csv", f"url,caption,\n{U}1,a cat,\n{U}2,a dog\n", ["a cat", "a dog"]),
    "csv named txt": ("a.txt", f"url,caption\n{U}1,a cat\n", ["a cat"]),
    "Spark": ("a.csv", f'url,caption\n{U}1,"a \\"big\\" dog, running"\n', ['a "big" dog, running']),
    "JSON lists": ("a.json", [[f"{U}1", "a cat"], [f"{U}2", "a dog"]], ["a cat", "a dog"]),
    "rows by key": (
        "a.json",
        {"k1": {"url": U, "caption": "a cat"}, "k2": {"url": U, "caption": "a dog"}},
        ["a cat", "a dog"],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_lists_as_they_are_distributed(tmp_path: Path, name: str) -> None:
    file, content, captions = PUBLISHED[name]
    urls = UrlList(save(tmp_path / file, content))
    rows = list(urls)
    assert [row["caption"] for row in rows] == captions
    assert all(row["url"].startswith(U) for row in rows)
    assert urls.account.rows_with_text == len(captions)


SEVERAL_TEXTS = {
    "Recap-DataComp": ({"url": [U], "re_caption": ["a wall"], "org_caption": ["IMG 1"]}, "'re_caption', 'org_caption'"),
    "PixelProse": (
        {"url": [U], "original_caption": ["x y"], "vlm_caption": ["z w"]},
        "'original_caption', 'vlm_caption'",
    ),
    "WIT": (
        {
            "page_url": [f"{U}p"],
            "image_url": [U],
            "caption_reference_description": ["a b"],
            "caption_alt_text_description": [None],
        },
        "'caption_reference_description', 'caption_alt_text_description'",
    ),
    "an empty caption beside a text": ({"url": [U], "caption": [""], "body": ["a red wall"]}, "'body' may hold texts"),
}


@pytest.mark.parametrize("name", SEVERAL_TEXTS)
def test_texts_that_nobody_named_are_an_error_with_the_remedy(tmp_path: Path, name: str) -> None:
    columns, words = SEVERAL_TEXTS[name]
    path = save(tmp_path / "a.parquet", pa.table({key: pa.array(cells, pa.string()) for key, cells in columns.items()}))
    with pytest.raises(ValueError, match=words) as error:
        texts(UrlList(path))
    assert "--caption-col" in str(error.value)
    assert texts(UrlList(path, caption_cols=["none"])) == [None]


def test_several_columns_give_several_texts(tmp_path: Path) -> None:
    table = pa.table({"url": [U, U], "re_caption": ["a wall", None], "org_caption": [" ", "IMG 2"], "uid": ["x", "y"]})
    urls = UrlList(save(tmp_path / "a.parquet", table), caption_cols=["re_caption", "org_caption"])
    rows = list(urls)
    assert [(row["caption"], row["more"]) for row in rows] == [("a wall", []), ("IMG 2", [])]
    assert rows[0]["columns"] == {"uid": "x"} and urls.further == pa.schema([("uid", pa.string())])
    assert urls.account.texts == {"re_caption": 1, "org_caption": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", [{"url": U, "captions": ["a", "b", "c"]}]),
        ("pandas.csv", f"url,captions\n{U},\"['a', 'b', 'c']\"\n"),
        ("json.csv", f'url,captions\n{U},"[""a"", ""b"", ""c""]"\n'),
    ],
)
def test_a_list_of_texts_in_a_cell_is_several_texts(tmp_path: Path, name: str, content: Any) -> None:
    (row,) = UrlList(save(tmp_path / name, content))
    assert (row["caption"], row["more"]) == ("a", ["b", "c"])


def test_several_urls_in_a_row_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no texts in 'url', but .*a row for each URL"):
        UrlList(save(tmp_path / "a.json", [{"url": [U, U], "caption": "a cat"}]))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_objects_without_a_known_text_are_named(tmp_path: Path, kind: str) -> None:
    by_language = pa.array([[("en", "a cat")]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"url": [U], "captions": by_language})
    line = json.dumps({"url": U, "captions": {"en": "a cat"}})
    path = save(tmp_path / f"a.{kind}", table if kind == "parquet" else line)
    with pytest.raises(ValueError, match=r"no text in 'captions', whose cells are objects such as .*'en'.*'a cat'"):
        list(UrlList(path))
    assert texts(UrlList(path, caption_cols=["none"])) == [None]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (
            "url,caption\nhttp://x,a\n",
            {"caption_cols": ["alt"]},
            "has no column 'alt' .--caption-col.; it has url, caption",
        ),
        (
            "url,caption\nhttp://x,\nhttp://y,\n",
            {"caption_cols": ["caption"]},
            "has no text in 'caption' in any of its 2 rows",
        ),
        (
            "url,caption\nhttp://x,a\n",
            {"caption_cols": ["url"]},
            "its URLs in 'url', so --caption-col must name another",
        ),
        ("a,b\n1,2\n", {}, "no column that looks like a URL; it has a, b. Name the column with --url-col"),
        ("pic,thumb\nhttp://x/1,http://x/2\n", {}, "several columns that look like a URL: 'pic', 'thumb'.*--url-col"),
        ("url,caption,caption\nhttp://x,a,b\n", {}, "2 columns of the name 'caption'. Rename one of them"),
        ("http://x,a b,c d\n", {}, "'2', '3' may hold texts"),
        ("url,l\udce9gende\nhttp://x,a\n", {}, "the column name .*--encoding"),
        ("\x1f\udc8b\x08", {}, "has the content of a .gz file; give it this suffix"),
        ("PAR1", {}, "has the content of a .parquet file"),
        ("version https://git-lfs.github.com/spec/v1\n", {}, "a pointer of Git LFS"),
        ("http://x,a b\n", {"options": ListOptions(columns=("url",))}, "has 2 columns, but --columns names 1: url"),
        ("url,caption\n1,2,3\n4,5,6\n", {}, "no row that can be read.*line 2: the row has 3 cells, but the header 2"),
    ],
)
def test_errors_name_what_was_found_and_the_remedy(tmp_path: Path, content: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        texts(UrlList(save(tmp_path / "a.csv", content), **options))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------- bad rows

LATIN = f"{U}2"
BAD: dict[str, tuple[str, bytes]] = {
    "csv": ("a.csv", f"url,caption\n{U}1,one\n{LATIN},caf\xe9\n{U}3,three\n".encode("latin-1")),
    "a row of another width": ("a.csv", f"url,caption\n{U}1,one\n{LATIN},two,2\n{U}3,three\n".encode()),
    "a quote that is not closed": ("a.csv", f'url,caption\n{U}1,"one, 1"\n{LATIN},"two, 2\n{U}3,"three, 3"\n'.encode()),
    "tsv": ("a.tsv", f"url\tcaption\n{U}1\tone\n{LATIN}\tcaf\xe9\n{U}3\tthree\n".encode("latin-1")),
    "jsonl": (
        "a.jsonl",
        f'{{"url":"{U}1"}}\n{{"url":"{LATIN}","caption":"caf\xe9"}}\n{{"url":"{U}3"}}\n'.encode("latin-1"),
    ),
    "broken jsonl": ("a.jsonl", f'{{"url":"{U}1"}}\n{{"url":"{LATIN}","caption":\n{{"url":"{U}3"}}\n'.encode()),
    "json": (
        "a.json",
        f'[{{"url":"{U}1"}},{{"url":"{LATIN}","caption":"caf\xe9"}},{{"url":"{U}3"}}]'.encode("latin-1"),
    ),
    "txt": ("a.txt", f"{U}1\n{U}caf\xe9\n{U}3\n".encode("latin-1")),
    "cut utf-16": ("a.csv", f"url,caption\n{U}1,one\n{U}3,three\n{LATIN},two".encode("utf-16") + b"x"),
    "half a surrogate pair in utf-16": (
        "a.csv",
        f"url,caption\n{U}1,one\n{LATIN},\ud83d\n{U}3,three\n".encode("utf-16-le", "surrogatepass"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_cannot_be_read_costs_only_itself(tmp_path: Path, name: str) -> None:
    file, content = BAD[name]
    urls = UrlList(save(tmp_path / file, content), caption_cols=["none"])
    rows = list(urls)
    bad = [row for row in rows if row.get("status") == "bad_row"]
    assert len(rows) == 3 and len(bad) == 1 and file in bad[0]["error"]
    assert {row["url"] for row in rows if row not in bad} == {f"{U}1", f"{U}3"}
    assert "the outcome bad_row: 1; the first: " in urls.account.notes[0]


def test_a_bad_byte_in_parquet_costs_only_its_row(tmp_path: Path) -> None:
    offsets = pa.array([0, 3, 7], pa.int32()).buffers()[1]
    captions = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"onecaf\xe9")])
    urls = UrlList(save(tmp_path / "a.parquet", pa.table({"url": [f"{U}1", f"{U}2"], "caption": captions})))
    assert [(row["url"], row["caption"], row.get("status")) for row in urls] == [
        (f"{U}1", "one", None),
        (f"{U}2", None, "bad_row"),
    ]


def test_many_bad_rows_end_the_run_with_a_remedy(tmp_path: Path) -> None:
    lines = [f"{U}{number},caf\xe9" if number % 10 == 0 else f"{U}{number},x" for number in range(1000)]
    path = save(tmp_path / "a.csv", "\n".join(["url,caption", *lines]).encode("latin-1"))
    with pytest.raises(ValueError, match=r"100 of the 1,000 rows .* cannot be read.*--encoding"):
        texts(UrlList(path))
    assert len(texts(UrlList(path, max_bad=0.2))) == 1000
    assert texts(UrlList(path, options=ListOptions(encoding="latin-1")))[0] == "café"


@pytest.mark.parametrize("line", ["1.jpg a red wall", "1.jpg,wall", "1;a red wall", "1.PNG|wall"])
def test_lines_with_more_than_a_url_are_not_taken_for_urls(tmp_path: Path, line: str) -> None:
    path = save(tmp_path / "a.txt", f"{U}{line}\n{U}{line}\n{U}3.jpg\n")
    with pytest.raises(ValueError, match="its lines hold more than a URL"):
        UrlList(path)
    assert len(texts(UrlList(path, options=ListOptions(columns=("url",))))) == 3
    assert len(texts(UrlList(save(tmp_path / "b.txt", f"url\n{U}1,2.jpg\n{U}2;3\n")))) == 3


def test_texts_that_only_later_rows_have_are_not_lost(tmp_path: Path) -> None:
    lines = [{"url": U}] * 1500 + [{"url": U, "caption": "a cat"}]
    path = save(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="'caption' may hold texts"):
        texts(UrlList(path))
    assert texts(UrlList(path, caption_cols=["caption"]))[-1] == "a cat"
    urls = UrlList(path, caption_cols=["none"])
    assert len(texts(urls)) == 1501 and "only later rows have caption" in urls.account.notes[0]
    with pytest.raises(ValueError, match="no text in 'alt' in any of its 1,501 rows"):
        texts(UrlList(path, caption_cols=["alt"]))


def test_a_missing_cell_of_a_dump_is_no_text(tmp_path: Path) -> None:
    assert texts(UrlList(save(tmp_path / "a.tsv", f"url\tcaption\n{U}1\ta b\n{U}2\t\\N\n"))) == ["a b", None]


def test_pictures_in_a_list_are_not_read_as_texts(tmp_path: Path) -> None:
    picture = io.BytesIO(b"\xff\xd8\xff\xe0").getvalue()
    table = pa.table({"url": [f"{U}1".encode()], "caption": [b"a cat"], "jpg": [picture]})
    urls = UrlList(save(tmp_path / "a.parquet", table))
    assert [(row["url"], row["caption"], row["columns"]) for row in urls] == [(f"{U}1", "a cat", {})]


def test_checksums_are_handed_on(tmp_path: Path) -> None:
    rows = [{"url": U, "caption": "a", "SHA256": digest} for digest in ("AB" * 32, "x", None)]
    assert [row["checksum"] for row in UrlList(save(tmp_path / "a.json", rows))] == ["ab" * 32, None, None]


def test_the_account_says_what_the_list_was_taken_for(tmp_path: Path) -> None:
    content = f'url\tcaption\ttitle\tn\n{U}1\tone\tA title\t3\n{U}2\t "two\tB title\t4\n{U}3\t\tC\t5\n'
    urls = UrlList(save(tmp_path / "a.tsv", content))
    first, *_ = urls
    assert first["columns"] == {"title": "A title", "n": "3"}
    assert urls.account.to_dict() == {
        "kind": "URL list",
        "files": 1,
        "format": "tsv, UTF-8, header, quotes are part of the text",
        "picture": "URLs in column 'url'",
        "texts": {"caption": 2},
        "unused": ["title"],
        "kept": ["title", "n"],
        "rows": 3,
        "rows_with_text": 2,
    }
    assert urls.further is None  # all cells of a tsv are texts
