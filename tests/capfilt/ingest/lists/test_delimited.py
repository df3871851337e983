"""Quotes, delimiters and headers of csv, tsv and txt are found by rules; a broken row costs only itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.ingest.lists import delimited, list_files
from capfilt.ingest.lists.list_files import ListOptions
from capfilt.ingest.lists.rows import RowList, open_list

FOLLOWING = "http://h/1,one\nhttp://h/2,two\n"


def read(path: Path, content: str, options: ListOptions | None = None) -> tuple[RowList, list[tuple], list[str]]:
    """Return the list, the cells of its good rows and the errors of the others."""
    path.write_text(content, encoding="utf-8", newline="")
    rows = open_list(str(path), options)
    found = list(rows.read(rows.names))
    return rows, [row.cells for row in found if row.error is None], [row.error for row in found if row.error]


QUOTES: dict[str, tuple[str, str, str, list[str]]] = {
    # name: file, content, how quotes are meant, captions
    "tsv with stray quotes": (
        "a.tsv",
        'url\tcaption\nu1\t"Sunset" canvas\nu2\t"Hello"\nu3\t55" TV\n',
        "part of the text",
        ['"Sunset" canvas', '"Hello"', '55" TV'],
    ),
    "tsv by a writer": ("a.tsv", 'url\tcaption\nu1\t"a ""b"" c"\nu2\tx\n', "may be quoted", ['a "b" c', "x"]),
    "tsv by a writer, several lines": ("a.tsv", 'url\tcaption\nu1\t"a\nb"\nu2\tx\n', "may be quoted", ["a\nb", "x"]),
    "tsv, all quoted": ("a.tsv", '"url"\t"caption"\n"u1"\t"a"\n', "may be quoted", ["a"]),
    "tsv with a swallowed row": (
        "a.tsv",
        'url\tcaption\nhttp://x/1\t"Big Ben\nhttp://x/2\ttwo\nhttp://x/3\tTV 55"\n',
        "part of the text",
        ['"Big Ben', "two", 'TV 55"'],
    ),
    "csv with stray quotes": (
        "a.csv",
        'url,caption\nu1,"Sunset" canvas\nu2,x\n',
        "part of the text",
        ['"Sunset" canvas', "x"],
    ),
    "csv by a writer": ("a.csv", 'url,caption\nu1,"a, ""b"""\nu2,x "y" z\n', "may be quoted", ['a, "b"', 'x "y" z']),
    "csv with a swallowed row": (
        "a.csv",
        'url,caption\nhttp://x/1,"Big Ben\nhttp://x/2,two\nhttp://x/3,TV 55"\n',
        "part of the text",
        ['"Big Ben', "two", 'TV 55"'],
    ),
    "lines that look like rows, by a writer": (
        "a.csv",
        'url,caption\nhttp://a,"a photo of ""it""\nhttp://x.org, CC-BY"\n\nhttp://b,x\n',
        "may be quoted",
        ['a photo of "it"\nhttp://x.org, CC-BY', "x"],
    ),
    "backslashes": ("a.csv", 'url,caption\nu1,"a \\"b\\", c"\nu2,x\n', "backslashes", ['a "b", c', "x"]),
    "no quotes": ("a.csv", "url,caption\nu1,a\n", "no quotes", ["a"]),
    "spaces after delimiters": ("a.csv", 'url, caption\nu1, "a, b"\nu2, c \n', "may be quoted", ["a, b", "c"]),
}


@pytest.mark.parametrize("name", QUOTES)
def test_quotes_are_read_as_the_file_means_them_and_it_is_said(tmp_path: Path, name: str) -> None:
    file, content, words, captions = QUOTES[name]
    rows, cells, errors = read(tmp_path / file, content)
    assert [caption for _, caption in cells] == captions and not errors
    assert words in rows.format


def test_options_overrule_what_is_found(tmp_path: Path) -> None:
    content = 'url\tcaption\nu1\t"Hello"\n'
    assert read(tmp_path / "a.tsv", content)[1] == [("u1", '"Hello"')]
    assert read(tmp_path / "a.tsv", content, ListOptions(quoting="double"))[1] == [("u1", "Hello")]
    rows, cells, _ = read(tmp_path / "a.tsv", content, ListOptions(columns=("a", "b")))
    assert rows.names == ["a", "b"] and cells[0] == ("url", "caption")
    rows, cells, _ = read(tmp_path / "a.tsv", content, ListOptions(no_header=True))
    assert rows.names == ["1", "2"] and len(cells) == 2
    with pytest.raises(ValueError, match="'latin-99' is not a text encoding"):
        ListOptions(encoding="latin-99")


UNCLOSED = {
    "to the end": ('url,caption\nhttp://a,"x, y\n' + FOLLOWING, 2),
    "to the next quote": ('url,caption\nhttp://a,"x, y\n' + FOLLOWING + 'http://b,"z, z\n' + FOLLOWING, 4),
    "before the url": ('caption,url\n"x,1,http://a\ny,http://b\nz,http://c\n', 2),
}


@pytest.mark.parametrize("name", UNCLOSED)
def test_a_quote_that_is_not_closed_costs_its_own_row(tmp_path: Path, name: str) -> None:
    """It does not swallow the rows up to the next quote."""
    content, good = UNCLOSED[name]
    _, cells, errors = read(tmp_path / "list.csv", content)
    assert len(cells) == good and "list.csv, line 2: " in errors[0]


def test_a_file_without_a_quote_at_its_start_is_decided_where_quotes_begin(tmp_path: Path) -> None:
    start = "url\tcaption\n" + "u\tx\n" * 50_000
    rows, cells, _ = read(tmp_path / "a.tsv", start + 'u\t"a ""b"""\n')
    assert cells[-1] == ("u", 'a "b"') and "may be quoted" in rows.format
    rows, cells, _ = read(tmp_path / "b.tsv", start + 'u\t"a" b\n')
    assert cells[-1] == ("u", '"a" b') and "part of the text" in rows.format


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl"])
@pytest.mark.parametrize("first", [False, True])
def test_a_line_without_end_costs_one_row_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: bool
) -> None:
    monkeypatch.setattr(list_files, "MAX_LINE_BYTES", 1 << 16)
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 1 << 16)
    monkeypatch.setattr(list_files, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(list_files, "SAMPLE_BYTES", 1 << 12)
    long = "x" * (1 << 20)
    lines = {
        "a.csv": ["u,c", f'u1,"{long}"', "u2,c"],
        "a.tsv": ["u\tc", f"u1\t{long}", "u2\tc"],
        "a.txt": ["http://u0", f"http://{long}", "http://u2"],
        "a.jsonl": ['{"u": "u0", "c": 1}', f'{{"u": "u1", "c": "{long}"}}', '{"u": "u2", "c": 1}'],
    }[name]
    if first and name in ("a.txt", "a.jsonl"):
        lines = [lines[1], lines[0], lines[2]]
    _, cells, errors = read(tmp_path / name, "\n".join(lines))
    assert cells[-1][0].endswith("u2") and len(errors) == 1
    assert "is longer than" in errors[0]


def test_a_quote_before_a_long_file_does_not_load_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 1 << 10)
    content = 'url,caption\nhttp://a,"x, y\n' + "http://c,x\n" * 1000
    _, cells, errors = read(tmp_path / "list.csv", content)
    assert len(cells) == 1000 and len(errors) == 1 and "list.csv, line 2: " in errors[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "is empty"),
        ("a.tsv", "\n\n", "is empty"),
        ("a.csv", "url,b\n", "has no rows"),
        ("a.csv", "url,caption\nu,v,w\n", "no row that can be read.*the row has 3 cells, but the header 2"),
        ("a.txt.gz", "plain", "cannot be read as txt"),
        ("a.csv.zst", "plain", "cannot be read as csv"),
        ("a.csv.xz", "plain", "cannot be read as csv"),
        ("a.csv.bz2", "plain", "cannot be read as csv"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, name: str, content: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path / name, content)
    assert "\n" not in str(error.value)
