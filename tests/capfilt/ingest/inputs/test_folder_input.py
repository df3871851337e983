"""Folders of pictures: text files and JSON beside them, splits, and the account of their texts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from input_rows import JPEG, read_input, texts_by_url, write_files

METADATA = {
    "url": "http://x/1.jpg",
    "caption": "red",
    "key": "000000000",
    "status": "success",
    "exif": json.dumps({"Image Orientation": "Rotated 90 CW"}),
    "nsfw": 0.2,
}


@pytest.mark.parametrize(
    ("files", "texts"),
    [
        ({"a.txt": "  a dog\n"}, ["a dog"]),
        ({"a.caption": "1girl, solo"}, ["1girl, solo"]),
        ({"a.cap": "a dog"}, ["a dog"]),
        ({"a.txt": " ", "a.caption": "b"}, ["b"]),
        ({"a.jpg.txt": "a dog"}, ["a dog"]),
        ({"a.TXT": "a dog"}, ["a dog"]),
        ({"a.json": '{"caption": ["one", "two"]}'}, ["one", "two"]),
        ({"a.json": '["one", "two"]'}, ["one", "two"]),
        ({"a.jpg.json": '{"text": "one"}'}, ["one"]),
        ({"a.txt": "one\ntwo\r\nthree"}, ["one", "two", "three"]),
        ({"a.txt": "one\n\nparagraph"}, ["one\n\nparagraph"]),
        ({"a.txt": "red\nhot", "a.json": '{"caption": "red\\nhot"}'}, ["red\nhot"]),
        ({"a.txt": "it’s a café".encode("utf-16")}, ["it’s a café"]),
        ({"a.txt": "\ufeffa dog"}, ["a dog"]),
    ],
)
def test_the_texts_beside_a_picture(tmp_path: Path, files: dict[str, bytes | str], texts: list[str]) -> None:
    assert texts_by_url(write_files(tmp_path, {"a.jpg": JPEG} | files)) == {"a.jpg": texts}


def test_a_name_may_have_composed_accents_or_not(tmp_path: Path) -> None:
    assert texts_by_url(write_files(tmp_path, {"caf\u00e9.jpg": JPEG, "cafe\u0301.txt": "t"})) == {
        "caf\u00e9.jpg": ["t"]
    }


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (".caption", ["a cat"]),
        ("caption", ["a cat"]),
        (("caption", "txt"), ["a cat", "tags, cat"]),
        ("title", ["my cat"]),
        ("none", []),
    ],
)
def test_suffixes_and_keys_are_chosen_by_name(tmp_path: Path, names: str | tuple[str, ...], texts: list[str]) -> None:
    files = {"a.jpg": JPEG, "a.txt": "tags, cat", "a.caption": "a cat", "a.json": '{"title": "my cat", "id": "7"}'}
    assert texts_by_url(write_files(tmp_path, files), names) == {"a.jpg": texts}


def test_the_output_of_img2dataset_as_files(tmp_path: Path) -> None:
    files = {"0/0.jpg": JPEG, "0/0.txt": "red", "0/0.json": json.dumps(METADATA)}
    opened, (row,) = read_input(write_files(tmp_path, files | {"00000_stats.json": "{}", "00000.parquet": b"PAR1"}))
    assert (row["url"], row["texts"], row["orientation"], row["columns"]) == (
        *("http://x/1.jpg", ["red"], 6),
        {"nsfw": 0.2},  # no exif, which would rotate the stored picture again
    )
    assert opened.account.texts == {".txt": 1}


def test_pictures_of_img2dataset_without_captions_need_no_word(tmp_path: Path) -> None:
    metadata = {name: value for name, value in METADATA.items() if name != "caption"}
    files = {"0/0.jpg": JPEG, "0/0.json": json.dumps(metadata), "00000.parquet": b"PAR1"}
    assert texts_by_url(write_files(tmp_path, files)) == {"http://x/1.jpg": []}


def test_photos_without_any_text_stay_fine(tmp_path: Path) -> None:
    opened, rows = read_input(write_files(tmp_path, {"a.jpg": JPEG, "README.txt": "x", "LICENSE": "x"}))
    assert len(rows) == 1 and opened.account.unused == () and opened.account.rows_with_text == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"x.txt": "t"}, r"no text beside any of its pictures: x\.txt has the name of none"),
        ({"captions.csv": "image,caption\n"}, r"but \S+/captions\.csv may hold them: give it with --annotations"),
        ({"a.json": '{"title": "my cat"}'}, r"but 'title' may hold texts"),
        ({"a.txt": "a dog".encode("utf-16-le")}, r"a\.txt is not text in UTF-8 .* Give another --encoding"),
        ({"a.txt": b"\x00\x01"}, r"a\.txt is not text in UTF-8"),
        ({"a.json": "{x"}, r"a\.json is not valid JSON"),
    ],
)
def test_texts_that_are_not_read_are_an_error_if_there_are_no_others(
    tmp_path: Path, files: dict[str, bytes | str], words: str
) -> None:
    write_files(tmp_path, {"a.jpg": JPEG} | files)
    with pytest.raises(ValueError, match=words):
        read_input(tmp_path)
    assert texts_by_url(tmp_path, "none") == {"a.jpg": []}


def test_a_text_in_another_encoding_is_counted_and_read_when_told(tmp_path: Path) -> None:
    cafe = "caf\u00e9"
    write_files(tmp_path, {"a.jpg": JPEG, "a.txt": cafe.encode("cp1252"), "b.jpg": JPEG, "b.txt": cafe})
    opened, rows = read_input(tmp_path)
    assert [row["texts"] for row in rows] == [[], [cafe]]
    assert "a.txt is not text in UTF-8" in rows[0]["error"]
    (note,) = opened.account.notes
    assert (
        "text files in another encoding, not read" in note and "--encoding, such as cp1252" in note and "a.txt" in note
    )
    assert texts_by_url(tmp_path, encoding="cp1252") == {"a.jpg": [cafe], "b.jpg": [cafe]}


def test_folders_of_splits_are_never_mixed_unless_told(tmp_path: Path) -> None:
    files = {"train/train.jpg": JPEG, "train/train.txt": "t", "val/val.jpg": JPEG, "val/val.txt": "v"}
    write_files(tmp_path, files)
    with pytest.raises(ValueError, match=r"has the splits train, val. Choose one with --split, such as --split train"):
        read_input(tmp_path)
    opened, (row,) = read_input(tmp_path, split="validation")
    assert (row["url"], row["texts"], opened.account.splits) == ("val/val.jpg", ["v"], ("val",))
    assert opened.account.notes == ()  # the text of another split is no stray
    assert len(read_input(tmp_path, split="all")[1]) == len(read_input(tmp_path, split="train+val")[1]) == 2


def test_class_folders_are_no_splits(tmp_path: Path) -> None:
    opened, rows = read_input(write_files(tmp_path, {"cat/a.jpg": JPEG, "train/b.jpg": JPEG}))
    assert (len(rows), opened.account.splits) == (2, ())


def test_a_pipe_is_no_text_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": JPEG, "b.jpg": JPEG, "b.txt": "b"})
    os.mkfifo(tmp_path / "a.txt")
    opened, rows = read_input(tmp_path)
    assert [row["texts"] for row in rows] == [[], ["b"]] and "not a regular file" in opened.account.notes[0]
