"""Annotation files as captioning people have them, and the files that they name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from input_rows import JPEG, read_input, texts_by_url, write_files

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a child"}]
LATER = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "here"}]
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a child"}]},
]
TOKENS = "<__dj__image> a child <|__dj__eoc|>"
COCO_IMAGE = {"id": 1, "file_name": "0.jpg", "license": 3}


def annotated(tmp_path: Path, name: str, content: Any, pictures: tuple[str, ...] = ("0.jpg",), **options: Any) -> Any:
    """Return the input of these pictures with an annotation file, and its rows; lists and objects become JSON."""
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    write_files(tmp_path, {f"Images/{picture}": JPEG for picture in pictures} | {name: content})
    return read_input(tmp_path / "Images", annotations=str(tmp_path / name), **options)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        (
            "captions.txt",
            'image,caption\n0.jpg,A child .\n0.jpg,"A small, child ."\n',
            ["A child .", "A small, child ."],
        ),
        ("Flickr8k.token.txt", "0.jpg#0\tA child .\n0.jpg#1\tA girl .\n", ["A child .", "A girl ."]),
        ("results_20130124.token", "0.jpg#0\tA child .\n", ["A child ."]),
        ("results.csv", "image_name| comment_number| comment\n0.jpg| 0| Two guys, .\n", ["Two guys, ."]),
        ("list.tsv", "0.jpg\tA child\n", ["A child"]),
        ("flickr.csv", 'raw,sentids,split,filename,img_id\n"[""a"", ""b""]","[0, 1]",train,0.jpg,0\n', ["a", "b"]),
        ("pandas.csv", "image,captions\n0.jpg,\"['a', 'b']\"\n", ["a", "b"]),
        ("semicolon.csv", "image;caption\n0.jpg;a, b\n", ["a, b"]),
        ("utf16.csv", "image,caption\n0.jpg,caf\u00e9\n".encode("utf-16"), ["caf\u00e9"]),
        pytest.param("list.csv.gz", gzip.compress(b"image,caption\n0.jpg,t\n", mtime=0), ["t"], id="list.csv.gz"),
        ("lines.json", '{"image": "0.jpg", "caption": "a"}\n{"image": "0.jpg", "caption": "b"}\n', ["a", "b"]),
        ("one.json", {"image": "0.jpg", "caption": "a"}, ["a"]),
        ("karpathy.json", {"images": [{"sentences": [{"raw": "A"}], "filename": "0.jpg"}], "dataset": "x"}, ["A"]),
        ("llava.json", [{"id": "0", "image": "0.jpg", "conversations": TURNS + LATER}], ["a child"]),
        ("messages.jsonl", json.dumps({"images": ["0.jpg"], "messages": MESSAGES}), ["a child"]),
        ("data_juicer.jsonl", json.dumps({"images": ["0.jpg"], "text": TOKENS}), ["a child"]),
        ("textcaps.json", {"data": [{"image_name": "0.jpg", "caption_str": "a sign"}]}, ["a sign"]),
        ("paths.json", {"0.jpg": ["x", "y"]}, ["x", "y"]),
        ("talks.csv", 'image,conversations\n0.jpg,"[{""from"": ""gpt"", ""value"": ""a cat""}]"\n', ["a cat"]),
        ("stems.json", {"0": "a cat"}, ["a cat"]),
        ("no_header.csv", "0.jpg,12,a dog\n", ["a dog"]),
        ("kohya.json", {"0": {"caption": "a cat", "tags": "1girl"}}, ["a cat"]),
        ("coco.json", {"images": [COCO_IMAGE], "annotations": [{"image_id": "1", "caption": "a"}]}, ["a"]),
        ("structs.jsonl", json.dumps({"image": {"bytes": None, "path": "0.jpg"}, "text": "t"}), ["t"]),
    ],
)
def test_the_texts_of_a_picture(tmp_path: Path, name: str, content: Any, texts: list[str]) -> None:
    opened, (row,) = annotated(tmp_path, name, content)
    assert (row["url"], row["texts"]) == ("0.jpg", texts)
    assert (opened.account.rows_with_text, sum(opened.account.texts.values())) == (1, 1)


def test_pictures_of_karpathy_are_in_folders_and_splits(tmp_path: Path) -> None:
    images = [
        {"filepath": "val2014", "filename": f"{n}.jpg", "sentences": [{"raw": split}], "split": split}
        for n, split in enumerate(("train", "restval", "test"))
    ]
    pictures = tuple(f"val2014/{n}.jpg" for n in range(3))
    with pytest.raises(ValueError, match="has the splits train, restval, test"):
        annotated(tmp_path, "dataset_coco.json", {"images": images}, pictures)
    opened, rows = annotated(tmp_path, "dataset_coco.json", {"images": images}, pictures, split="train+restval")
    assert {row["url"]: row["texts"] for row in rows} == {"val2014/0.jpg": ["train"], "val2014/1.jpg": ["restval"]}
    assert opened.account.splits == ("train", "restval")


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["0.jpg", "1.jpg"], "text": TOKENS + TOKENS.replace("child", "dog")},
        {"images": ["0.jpg", "1.jpg"], "captions": ["a child", "a dog"]},
    ],
)
def test_several_pictures_in_a_row_with_a_text_each(tmp_path: Path, row: dict[str, Any]) -> None:
    _, rows = annotated(tmp_path, "list.jsonl", row, ("0.jpg", "1.jpg"))
    assert [(row["url"], row["texts"]) for row in rows] == [("0.jpg", ["a child"]), ("1.jpg", ["a dog"])]


def test_several_pictures_of_one_text_are_a_bad_row(tmp_path: Path) -> None:
    lines = [{"images": ["0.jpg", "1.jpg"], "text": "both"}, {"images": ["0.jpg"], "text": "one"}]
    opened, rows = annotated(tmp_path, "list.jsonl", "\n".join(map(json.dumps, lines)), ("0.jpg", "1.jpg"))
    assert [(row.get("status"), row["texts"]) for row in rows] == [("bad_row", []), (None, ["one"])]
    problem = "0.jpg and 1 more pictures in one row"
    assert problem in rows[0]["error"] and problem in opened.account.notes[0]


def test_a_picture_with_a_text_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    content = b"image,caption\n0.jpg,one\n1.jpg,caf\xe9\n\xe9.jpg,two\n"
    opened, rows = annotated(tmp_path, "a.csv", content, ("0.jpg", "1.jpg"))
    assert [(row["url"], row["texts"], row.get("status")) for row in rows] == [
        ("0.jpg", ["one"], None),
        ("1.jpg", [], None),
        (None, [], "bad_row"),
    ]
    assert "line 3: the byte 0xe9" in rows[1]["error"] and opened.account.rows_with_text == 1


def test_a_row_of_flickr30k_without_its_delimiter_is_one_bad_row(tmp_path: Path) -> None:
    lines = ["image_name| comment_number| comment", "0.jpg| 3| A dog .", "0.jpg| 4   A dog runs .", "1.jpg| 0| A cat ."]
    opened, rows = annotated(tmp_path, "results.csv", "\n".join(lines), ("0.jpg", "1.jpg"))
    assert [(row["url"], row["texts"], row.get("status")) for row in rows] == [
        ("0.jpg", ["A dog ."], None), (None, [], "bad_row"), ("1.jpg", ["A cat ."], None)
    ]  # fmt: skip
    assert "line 3: the row has 2 cells, but the header 3" in opened.account.notes[0]


def test_what_is_taken_from_conversations_is_said(tmp_path: Path) -> None:
    rows_of_text = [{"id": "0", "image": "0.jpg", "conversations": TURNS}, {"id": "1", "conversations": TURNS}]
    opened, rows = annotated(tmp_path, "llava.json", rows_of_text)
    assert [row.get("status") for row in rows] == [None, "bad_url"]  # the second has no picture
    assert opened.account.notes == (
        "'conversations' holds conversations: the first reply is the text, later ones are not used.",
    )


def test_further_columns_and_keys_are_kept(tmp_path: Path) -> None:
    _, (row,) = annotated(tmp_path, "a.csv", "image,caption,license\n0.jpg,t,mit\n")
    assert row["columns"] == {"license": "mit"}
    coco = {"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}]}
    opened, (row,) = annotated(tmp_path, "coco.json", coco)
    assert row["columns"] == {"id": 1, "license": 3}
    assert opened.account.notes == ("1 annotations belong to none of the images of coco.json and are not used.",)


@pytest.mark.parametrize(
    ("content", "names", "texts"),
    [
        ("image,a,b\n0.jpg,x,y\n", ("b", "a"), ["y", "x"]),
        ({"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "sentence": "a cat"}]}, "sentence", ["a cat"]),
        ({"0": {"caption": "a cat", "tags": "1girl"}}, "tags", ["1girl"]),
        ([{"image": "0.jpg", "caption": "a"}], "none", []),
    ],
)
def test_columns_of_texts_are_chosen_by_name(tmp_path: Path, content: Any, names: Any, texts: list[str]) -> None:
    name = "list.csv" if isinstance(content, str) else "list.json"
    assert annotated(tmp_path, name, content, caption_col=names)[1][0]["texts"] == texts


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("a.jpg", "a.JPG"),
        ("123", "123.png"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("./sub/a.jpg", "sub/a.jpg"),
    ],
)
def test_a_picture_is_found_whatever_the_spelling_of_its_name(tmp_path: Path, written: str, stored: str) -> None:
    _, (row,) = annotated(tmp_path, "a.csv", f"image,caption\n{written},t\n", (stored,))
    assert row["url"] == stored


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "image,label\n0.jpg,my cat\n", "but 'label' may hold texts"),
        ("a.csv", "url,caption\nhttp://x/0.jpg,my cat\n", "names URLs in 'url'; fetch them with `capfilt download"),
        ("a.csv", "image,caption\nImages/0.jpg,t\n", r"such as Images/0\.jpg; give /.* as SOURCE"),
        ("a.csv", "image,caption\n/abs/0.jpg,t\n", "All 1 pictures .* are outside of"),
        ("a.csv", "image,caption\n0.jpg,caf\u00e9\n".encode("cp1252"), "line 2: .* give --encoding, such as cp1252"),
        ("a.csv", "image,caption,split\n0.jpg,a,train\n0.jpg,b,test\n", "has the splits train, test"),
        ("a.json", {"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "bbox": [1]}]}, "is it a file of captions"),
        ("a.csv", "image,caption\n0.jpg,a\0b\n", r"no text that can be read: a text of 0\.jpg has a NUL"),
        ("a.csv", "image,caption\n" + "A" * 5000 + ",t\n", "Pictures in base64 are not read"),
        ("a.json", "", "has no rows"),
        ("a.json", '{"a": ' * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_a_file_without_texts_or_pictures_is_an_error(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        annotated(tmp_path, name, content)


def test_an_encoding_can_be_told(tmp_path: Path) -> None:
    content = "image,caption\n0.jpg,caf\u00e9\n".encode("cp1252")
    assert annotated(tmp_path, "a.csv", content, encoding="cp1252")[1][0]["texts"] == ["caf\u00e9"]


def test_annotations_need_a_folder_and_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": JPEG, "a.csv": "image,caption\na.jpg,t\n"})
    with pytest.raises(FileNotFoundError, match=r"No annotation file at .*none\.csv"):
        read_input(tmp_path, annotations=str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match=r"names pictures in a folder, but .* is a file"):
        read_input(tmp_path / "a.jpg", annotations=str(tmp_path / "a.csv"))
    with pytest.raises(ValueError, match="--kind parquet does not apply"):
        read_input(tmp_path, annotations=str(tmp_path / "a.csv"), kind="parquet")
    assert texts_by_url(tmp_path / "a.csv") == {"a.jpg": ["t"]}
