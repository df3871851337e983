"""COCO annotation files: captions grouped by image, required or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blipcore.io.coco import CocoImage, parse_coco, read_coco


def test_captions_are_grouped_by_image(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "b.jpg", "domain": "out-domain"}, {"id": "x", "file_name": "a.jpg"}]
    annotations = [{"image_id": image_id, "caption": text} for image_id, text in (("x", "1"), (7, "2"), ("x", "3"))]
    (tmp_path / "c.json").write_text("\ufeff" + json.dumps({"images": images, "annotations": annotations}))
    expected = [CocoImage(7, "b.jpg", "out-domain", ["2"]), CocoImage("x", "a.jpg", None, ["1", "3"])]
    assert read_coco(tmp_path / "c.json") == expected


def test_annotations_without_a_caption_or_an_image_can_be_ignored(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    annotations = [{"image_id": 7, "bbox": [1]}, {"image_id": 8, "caption": "of another image"}]
    content = {"images": [{"id": 7, "file_name": "b.jpg"}], "annotations": annotations}
    path.write_text(json.dumps(content))
    assert parse_coco(content, str(path), require_captions=False) == [CocoImage(7, "b.jpg", None, [])]
    with pytest.raises(ValueError, match=r"annotation 0: .* is this a file of captions"):
        read_coco(path)


@pytest.mark.parametrize("require_captions", [True, False])
def test_an_annotation_without_an_image_id_is_an_error(require_captions: bool) -> None:
    content = {"images": [{"id": 7, "file_name": "b.jpg"}], "annotations": [{"caption": "a dog"}]}
    with pytest.raises(ValueError, match='annotation 0: its "image_id" is missing'):
        parse_coco(content, "captions.json", require_captions)


@pytest.mark.parametrize("content", ["{", "[1]", '{"x": 1}'])
def test_other_json_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x.json (is not valid JSON|must hold a list)"):
        read_coco(tmp_path / "x.json")


def test_a_file_nested_too_deeply_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"x\.json is nested too deeply\.$"):
        read_coco(tmp_path / "x.json")


def test_ids_may_be_strings_in_one_list_and_numbers_in_the_other(tmp_path: Path) -> None:
    content = {"images": [{"id": 7, "file_name": "b.jpg"}], "annotations": [{"image_id": "7", "caption": "a"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert read_coco(tmp_path / "c.json") == [CocoImage(7, "b.jpg", None, ["a"])]


def test_captions_may_have_another_key() -> None:
    annotations = [{"image_id": 7, "sentence": "a", "tag": ["b"]}, {"image_id": 7, "tag": "c"}]
    content = {"images": [{"id": 7, "file_name": "b.jpg"}], "annotations": annotations}
    images = parse_coco(content, "c.json", require_captions=False, caption_keys=("sentence", "tag"))
    assert images == [CocoImage(7, "b.jpg", None, ["a", ["b"], "c"])]
