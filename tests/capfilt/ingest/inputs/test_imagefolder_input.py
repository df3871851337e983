"""Hugging Face's `imagefolder`: metadata files in any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from input_rows import JPEG, read_input, texts_by_url, write_files, write_parquet


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text\na.jpg,one\ndeep/b.jpg,two\n"),
        ("metadata.csv", "image_file_name,text\na.jpg,one\ndeep/b.jpg,two\n"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "one"}\n{"file_name": "deep/b.jpg", "text": ["two"]}\n'),
    ],
)
def test_a_metadata_file_names_pictures_in_its_folder_and_below(tmp_path: Path, name: str, content: str) -> None:
    opened, rows = read_input(write_files(tmp_path, {"a.jpg": JPEG, "deep/b.jpg": JPEG, name: content}))
    assert (opened.kind, {row["url"]: row["texts"] for row in rows}) == (
        "imagefolder",
        {"a.jpg": ["one"], "deep/b.jpg": ["two"]},
    )
    assert opened.account.texts == {"text": 2}


def test_metadata_in_parquet_with_further_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "metadata.parquet", file_name=["a.jpg"], text=["one"], license=["mit"])
    (row,) = read_input(write_files(tmp_path, {"a.jpg": JPEG}))[1]
    assert (row["texts"], row["columns"]) == (["one"], {"license": "mit"})


def test_a_metadata_file_in_each_folder_and_pictures_that_none_names(tmp_path: Path) -> None:
    files = {f"{folder}/{name}": JPEG for folder in ("x", "y") for name in ("a.jpg", "b.jpg")}
    lists = {f"{folder}/metadata.csv": f"file_name,text\na.jpg,{folder}\n" for folder in ("x", "y")}
    opened, rows = read_input(write_files(tmp_path, files | lists | {"y/b.txt": "own"}))
    assert {row["url"]: row["texts"] for row in rows} == {
        "x/a.jpg": ["x"], "y/a.jpg": ["y"], "x/b.jpg": [], "y/b.jpg": ["own"]
    }  # fmt: skip
    assert opened.account.notes == ("pictures that no metadata file names: 2, such as x/b.jpg.",)


def test_splits_are_folders_with_metadata_of_their_own_or_above(tmp_path: Path) -> None:
    files = {"train/a.jpg": JPEG, "test/b.jpg": JPEG}
    above = write_files(tmp_path / "above", files | {"metadata.csv": "file_name,text\ntrain/a.jpg,t\ntest/b.jpg,u\n"})
    own = {"train/metadata.csv": "file_name,text\na.jpg,t\n", "test/metadata.csv": "file_name,text\nb.jpg,u\n"}
    for folder in (above, write_files(tmp_path / "own", files | own)):
        with pytest.raises(ValueError, match="has the splits test, train"):
            read_input(folder)
        assert texts_by_url(folder, split="train") == {"train/a.jpg": ["t"]}


def test_pairs_of_pictures_need_a_column(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": JPEG, "metadata.csv": "input_file_name,output_file_name,text\nb.jpg,a.jpg,t\n"})
    with pytest.raises(ValueError, match=r"input_file_name, output_file_name. Name one with --image-col"):
        read_input(tmp_path)
    assert texts_by_url(tmp_path, image_col="output_file_name") == {"a.jpg": ["t"]}


def test_columns_that_may_hold_texts_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": JPEG, "metadata.csv": "file_name,additional_feature\na.jpg,This is a cat\n"})
    with pytest.raises(ValueError, match="but 'additional_feature' may hold texts"):
        read_input(tmp_path)
    assert texts_by_url(tmp_path, "additional_feature") == {"a.jpg": ["This is a cat"]}
    assert texts_by_url(tmp_path, "none") == {"a.jpg": []}


def test_the_kind_can_be_overruled(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": JPEG, "a.txt": "own", "metadata.csv": "file_name,text\na.jpg,t\n"})
    assert texts_by_url(tmp_path, kind="folder") == {"a.jpg": ["own"]}
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"has no metadata.csv"):
        read_input(tmp_path, kind="imagefolder")
