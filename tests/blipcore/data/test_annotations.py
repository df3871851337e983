"""Annotation files in the formats of BLIP, COCO and NoCaps, and the errors that name a bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blipcore.data.annotations import ListPart, read_captioned_images, split_captions


def write(tmp_path: Path, rows: Any, name: str = "annotations.json") -> str:
    path = tmp_path / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return str(path)


def test_rows_of_one_image_become_one_picture(tmp_path: Path) -> None:
    """coco_karpathy_train.json and flickr30k_train.json have a row per caption."""
    rows = [
        {"image": "a.jpg", "caption": "one", "image_id": "coco_9"},
        {"image": "b.jpg", "caption": "two", "image_id": "coco_5"},
        {"image": "a.jpg", "caption": "three", "image_id": "coco_9"},
    ]
    expected = [
        {"key": "a.jpg", "image": tmp_path / "a.jpg", "texts": ["one", "three"], "image_id": "coco_9"},
        {"key": "b.jpg", "image": tmp_path / "b.jpg", "texts": ["two"], "image_id": "coco_5"},
    ]
    assert read_captioned_images(write(tmp_path, rows)) == expected
    lines = "\n".join(map(json.dumps, rows))
    assert read_captioned_images(write(tmp_path, lines, "lines.jsonl")) == expected


def test_pictures_of_merged_data_sets_with_the_same_id_stay_apart(tmp_path: Path) -> None:
    """Otherwise a text would be trained on with the picture of another data set."""
    rows = [{"image": f"{name}/1.jpg", "caption": name, "image_id": 1} for name in ("coco", "vg", "coco")]
    path = write(tmp_path, rows)
    assert [(row["key"], row["texts"]) for row in read_captioned_images(path)] == [
        ("coco/1.jpg", ["coco", "coco"]),
        ("vg/1.jpg", ["vg"]),
    ]
    assert [part.pictures for part in split_captions(path)] == [2]


def test_lists_of_captions_and_an_image_root(tmp_path: Path) -> None:
    """flickr30k_test.json has a row per picture."""
    rows = [{"image": "val/a.jpg", "caption": ["one", "two"]}, {"image": "/elsewhere/b.jpg", "caption": ["three"]}]
    first, second = read_captioned_images(write(tmp_path, rows), image_root=tmp_path / "root")
    assert first["image"] == tmp_path / "root/val/a.jpg" and first["texts"] == ["one", "two"]
    assert str(second["image"]) == "/elsewhere/b.jpg" and second["image_id"] == "/elsewhere/b.jpg"


def test_the_id_of_a_coco_picture_comes_from_its_file_name(tmp_path: Path) -> None:
    """coco_karpathy_test.json has no other ids."""
    rows = [
        {"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["a man with a red helmet"]},
        {"image": "val2014/holiday_000000391895.jpg", "caption": ["not of COCO"]},
    ]
    assert [row["image_id"] for row in read_captioned_images(write(tmp_path, rows))] == [391895, rows[1]["image"]]


def test_nocaps_pictures_have_no_captions(tmp_path: Path) -> None:
    path = write(tmp_path, [{"image": "val/0013ea2087020901.jpg", "img_id": 0}])
    (row,) = read_captioned_images(path, need_texts=False)
    assert row["image_id"] == 0 and row["texts"] == []
    with pytest.raises(ValueError, match='no "caption" in row 0'):
        read_captioned_images(path)


COCO = {
    "info": {},
    "images": [
        {"id": 7, "file_name": "b.jpg", "width": 3, "domain": "out-domain"},
        {"id": 3, "file_name": "a.jpg", "domain": "in-domain"},
    ],
    "annotations": [{"id": n, "image_id": n % 2 * 4 + 3, "caption": f"text {n}"} for n in range(5)],
}


def test_coco_and_nocaps_annotation_files(tmp_path: Path) -> None:
    first, second = read_captioned_images(write(tmp_path, COCO), image_root=tmp_path / "val2014")
    assert first == {
        "key": "b.jpg",
        "image": tmp_path / "val2014/b.jpg",
        "texts": ["text 1", "text 3"],
        "image_id": 7,
        "domain": "out-domain",
    }
    assert second["texts"] == ["text 0", "text 2", "text 4"] and second["domain"] == "in-domain"
    assert [part.pictures for part in split_captions(write(tmp_path, COCO), rows=1)] == [2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": {}}, 'an object of "images" and "annotations"'),
        ({"images": [{"file_name": "a.jpg"}]}, 'image 0: its "id" is missing'),
        ({"images": [{"id": 3}]}, 'image 0 has no "file_name", so this file can only be used for scoring'),
        ({"annotations": [{"image_id": 4, "caption": "x"}]}, "annotation 0: .* none of the images"),
        ({"annotations": [{"image_id": 3, "bbox": [1]}]}, "annotation 0: .* is this a file of captions"),
    ],
)
def test_errors_in_a_coco_file_name_the_entry(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read_captioned_images(write(tmp_path, COCO | change))
    assert "annotations.json" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("[", "not valid JSON"),
        ("", "list of rows"),
        ('{"image": ', "not valid JSON"),
        ({"image": "a"}, "list of rows"),
        ([], "no rows"),
        ([{"image": "a", "caption": "x"}, "text"], "row 1: a row must be an object"),
        ([{"caption": "x"}], 'row 0: "image" must be a path'),
        ([{"url": "http://x/a.jpg", "caption": "x"}], "row 0 has a URL.*capfilt download .*s.json DATA"),
        ([{"image": "a"}], 'no "caption" in row 0'),
        ([{"image": "a", "caption": []}], "No picture of .* has a caption with a text"),
        (
            [{"image": "a", "caption": " "}, {"image": "b", "caption": None}],
            "No picture of .* has a caption with a text",
        ),
        (
            [{"image": "a", "question": "what?"}],
            "no \"caption\" in row 0; its columns are 'image', 'question'. .*`capfilt pack .* annotations-shards`",
        ),
        ([{"picture": "a", "caption": "x"}], "\"image\" must be a path, .* its columns are 'picture', 'caption'"),
        ([{"image": "a", "caption": ["x", 3]}], 'row 0: "caption" must be'),
        ([{"image": "a", "caption": "x", "image_id": [1]}], 'row 0: "image_id" must be'),
    ],
)
def test_errors_name_file_and_row(tmp_path: Path, rows: Any, words: str) -> None:
    for read in (read_captioned_images, split_captions):
        with pytest.raises(ValueError, match=words) as error:
            read(write(tmp_path, rows))
        assert "annotations.json" in str(error.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No annotation file at"):
        read_captioned_images(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_parts_make_up_the_list_and_keep_consecutive_rows_of_a_picture_together(tmp_path: Path, name: str) -> None:
    rows = [{"image": f"{picture}.jpg", "caption": str(n)} for picture in range(50) for n in range(picture % 5)]
    path = write(tmp_path, rows if name == "a.json" else "\n".join(map(json.dumps, rows)), name)
    parts = split_captions(path, rows=7)
    pieces = [read_captioned_images(path, part=part) for part in parts]
    assert len(parts) > 8 and [len(piece) for piece in pieces] == [part.pictures for part in parts]
    assert [row for piece in pieces for row in piece] == read_captioned_images(path)
    assert split_captions(path) == [ListPart(parts[0].start, len(rows), 40)]


def test_a_picture_may_appear_in_several_parts(tmp_path: Path) -> None:
    rows = [{"image": f"{n % 3}.jpg", "caption": str(n)} for n in range(9)]
    assert [part.pictures for part in split_captions(write(tmp_path, rows), rows=4)] == [3, 3, 1]


def test_empty_texts_do_not_count_and_their_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"image": "a", "caption": ["x", " "]}, {"image": "b", "caption": ""}, {"image": "c", "caption": "y"}]
    path = write(tmp_path, rows)
    assert [(row["key"], row["texts"]) for row in read_captioned_images(path)] == [("a", ["x"]), ("c", ["y"])]
    assert [(part.pictures, part.blank_rows) for part in split_captions(path)] == [(2, 1)]
    assert [row["texts"] for row in read_captioned_images(path, need_texts=False)] == [["x"], [], ["y"]]


def test_rows_of_an_image_folder_are_read_by_their_names(tmp_path: Path) -> None:
    path = write(tmp_path, [{"file_name": "a.png", "text": "x"}])
    assert [(row["key"], row["texts"]) for row in read_captioned_images(path)] == [("a.png", ["x"])]
