"""Annotation files in BLIP's formats, and what is said of a bad row."""

import json

import pytest

from blipcore.data.annotations import read_captions


def write(tmp_path, rows) -> str:
    path = tmp_path / "annotations.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return str(path)


def test_rows_of_one_image_become_one_picture(tmp_path):
    rows = [
        {"image": "a.jpg", "caption": "one", "image_id": "coco_9"},
        {"image": "b.jpg", "caption": "two", "image_id": "coco_5"},
        {"image": "a.jpg", "caption": "three", "image_id": "coco_9"},
    ]
    assert read_captions(write(tmp_path, rows)) == [
        {"key": "a.jpg", "image": tmp_path / "a.jpg", "texts": ["one", "three"], "image_id": 0},
        {"key": "b.jpg", "image": tmp_path / "b.jpg", "texts": ["two"], "image_id": 1},
    ]


def test_lists_of_captions_and_an_image_root(tmp_path):
    rows = [{"image": "val/a.jpg", "caption": ["one", "two"]}, {"image": "/elsewhere/b.jpg", "caption": ["three"]}]
    first, second = read_captions(write(tmp_path, rows), image_root=tmp_path / "root")
    assert first["image"] == tmp_path / "root/val/a.jpg" and first["texts"] == ["one", "two"]
    assert str(second["image"]) == "/elsewhere/b.jpg"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("[", "not valid JSON"),
        ({"image": "a"}, "list of rows"),
        ([], "no rows"),
        ([{"image": "a", "caption": "x"}, "text"], "row 1: a row must be an object"),
        ([{"caption": "x"}], 'row 0: "image" must be a path'),
        ([{"image": "a"}], 'row 0: "caption" must be'),
        ([{"image": "a", "caption": []}], 'row 0: "caption" must be'),
        ([{"image": "a", "caption": ["x", 3]}], 'row 0: "caption" must be'),
        ([{"image": "a", "caption": "x", "image_id": [1]}], 'row 0: "image_id" must be'),
    ],
)
def test_bad_files_name_file_and_row(tmp_path, rows, words):
    with pytest.raises(ValueError, match=words) as error:
        read_captions(write(tmp_path, rows))
    assert "annotations.json" in str(error.value)


def test_an_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_captions(tmp_path / "absent.json")
