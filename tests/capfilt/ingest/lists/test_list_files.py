"""The files of a list are a file, a folder of parts or a pattern."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from capfilt.ingest.lists.list_files import (
    ListOptions,
    choose_files,
    file_fingerprint,
    find_encoding,
    find_list_files,
    list_format,
)
from capfilt.ingest.lists.rows import open_list


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names_of(folder: Path, path: str) -> list[str]:
    return [Path(file).relative_to(folder).as_posix() for file in find_list_files(path)]


def test_a_folder_holds_the_parts_of_a_list(tmp_path: Path) -> None:
    make(tmp_path, "b/1.csv", "a.csv.gz", "_SUCCESS", ".crc", "README.md", "_x.csv")
    assert names_of(tmp_path, str(tmp_path)) == ["a.csv.gz", "b/1.csv"]
    make(tmp_path, "c.parquet")
    with pytest.raises(ValueError, match=r"several formats .2 csv, 1 parquet.; give a pattern"):
        find_list_files(str(tmp_path))
    assert names_of(tmp_path, f"{tmp_path}/*.parquet") == ["c.parquet"]


def test_patterns_name_parts(tmp_path: Path) -> None:
    make(tmp_path, "00.csv", "01.csv", "02.csv", "d/03.csv", "a[1].csv")
    assert names_of(tmp_path, f"{tmp_path}/0[12].csv") == ["01.csv", "02.csv"]
    assert names_of(tmp_path, f"{tmp_path}/{{00..01}}.csv") == ["00.csv", "01.csv"]
    assert names_of(tmp_path, f"{tmp_path}/**/0?.csv") == ["00.csv", "01.csv", "02.csv", "d/03.csv"]
    assert names_of(tmp_path, f"{tmp_path}/a[1].csv") == ["a[1].csv"]  # a file of that name
    for path, words in ((f"{tmp_path}/x*.csv", "No file matches"), (f"{tmp_path}/x.csv", "No file at")):
        with pytest.raises(FileNotFoundError, match=words):
            find_list_files(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no files"):
        find_list_files(str(tmp_path / "empty"))


def test_patterns_work_on_fsspec_urls() -> None:
    for name in ("1.csv", "2.csv"):
        with fsspec.open(f"memory://patterns/{name}", "wb") as file:
            file.write(b"x")
    assert find_list_files("memory://patterns/*.csv") == ["memory://patterns/1.csv", "memory://patterns/2.csv"]
    assert find_list_files("memory://patterns") == ["memory://patterns/1.csv", "memory://patterns/2.csv"]


def test_the_format_is_that_of_the_suffix() -> None:
    for name, expected in {
        "a.CSV": "csv",
        "a.b.jsonl.zst": "jsonl",
        "a.ndjson.gz": "jsonl",
        "a.tab": "tsv",
        "x.snappy.parquet": "parquet",
        "a.feather": "arrow",
        "https://h/a.parquet?download=true": "parquet",
        "zip://in/a.csv::x.zip": "csv",
        "a.gz": None,
        "csv": None,
        "a.xls": None,
    }.items():
        assert list_format(name) == expected, name


def test_encodings_are_found_by_marks_and_zeros() -> None:
    text = "url,caption\nhttp://a,é\n"
    for encoding, expected in {
        "utf-8": "utf-8",
        "utf-8-sig": "utf-8",
        "utf-16": "utf-16-le",
        "utf-32": "utf-32-le",
    }.items():
        assert find_encoding(text.encode(encoding))[0] == expected
    assert find_encoding(text.encode("utf-16-be"))[0] == "utf-16-be"
    assert find_encoding(b"")[0] == "utf-8"


def test_the_fingerprint_depends_on_all_parts(tmp_path: Path) -> None:
    make(tmp_path, "a.csv", "b.csv")
    files = find_list_files(str(tmp_path))
    before = file_fingerprint(*files)
    (tmp_path / "b.csv").write_text("changed")
    assert file_fingerprint(*files) != before


def test_splits_are_not_mixed_without_a_word(tmp_path: Path) -> None:
    make(
        tmp_path, "data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/validation-00000-of-00001.csv"
    )
    files = find_list_files(str(tmp_path))
    with pytest.raises(ValueError, match=r"has the splits train, validation\. Choose one with --split"):
        choose_files(files, ListOptions(), "x")
    assert choose_files(files, ListOptions(split="train"), "x") == (files[:2], ("train",))
    assert choose_files(files, ListOptions(split="all"), "x")[0] == files
    assert choose_files(files[:2], ListOptions(), "x")[0] == files[:2]


def test_a_saved_dataset_is_the_list_of_its_arrow_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"url": ["http://x/1", "http://x/2"], "caption": ["a", "b"]})
    table.select([1, 0]).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    rows = open_list(str(tmp_path / "saved"))
    assert [row.cells for row in rows.read(["url", "caption"])] == [("http://x/2", "b"), ("http://x/1", "a")]
