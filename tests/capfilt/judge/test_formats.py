"""Public tests are read as distributed, and a file that is none says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from public_tests import aro, caption, colour_of, foil, ohd_caps, sugarcrepe, winoground, wrong

from capfilt.judge.formats import Case, Picture, read_test


def test_sugarcrepe_has_the_right_text_first(tmp_path: Path) -> None:
    test = read_test(sugarcrepe(tmp_path, 3, every=9), None)
    assert (test.name, test.kind, test.root) == ("SugarCrepe", "pairs", tmp_path)
    assert test.cases[1] == Case(Picture("001.jpg"), [caption(1, colour_of(1)), caption(1, wrong(1))])


def test_a_folder_of_sugarcrepe_files_has_a_group_per_file(tmp_path: Path) -> None:
    path = sugarcrepe(tmp_path, 3)
    (tmp_path / "swap_obj.json").write_text(path.read_text())
    groups = [case.group for case in read_test(tmp_path, None).cases]
    assert groups == ["replace_att"] * 3 + ["swap_obj"] * 3


def test_aro_is_cut_to_the_box(tmp_path: Path) -> None:
    test = read_test(aro(tmp_path, 2), "elsewhere")
    assert [case.picture for case in test.cases] == [
        Picture("0.png", (0, 0, 64, 64)), Picture("1.png", (64, 0, 128, 64))
    ]  # fmt: skip
    assert (test.name, test.cases[0].group, test.root) == ("ARO VG-Relation", "on", Path("elsewhere"))
    rows = json.loads((tmp_path / "visual_genome_relation.json").read_text())
    path = tmp_path / "visual_genome_attribution.json"
    path.write_text(json.dumps([row | {"attributes": ["red", "large"]} for row in rows]))
    test = read_test(path, None)
    assert (test.name, test.cases[0].group, test.smallest_group) == ("ARO VG-Attribution", "red_large", 25)


def test_winoground_has_two_pictures_per_item(tmp_path: Path) -> None:
    test = read_test(winoground(tmp_path, 2), None)
    assert [case.picture.path for case in test.cases[:2]] == ["ex_0_img_0.png", "ex_0_img_1.png"]
    assert test.cases[0].texts == test.cases[1].texts and test.kind == "winoground"


def test_ohd_caps_has_all_negatives_and_foil_its_pairs(tmp_path: Path) -> None:
    assert [len(case.texts) for case in read_test(ohd_caps(tmp_path / "ohd", 3), None).cases] == [6, 5, 5]
    pairs = read_test(foil(tmp_path / "foil", 3), None)
    assert pairs.cases[2] == Case(Picture("002.jpg"), [caption(2, colour_of(2)), caption(2, wrong(2, 2))])


def test_byte_order_marks_and_separators_of_lines_in_texts_are_read(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(ROW | {"caption": caption}, ensure_ascii=False) for caption in ("a\u2028b", "c"))
    (tmp_path / "test.jsonl").write_text(text, encoding="utf-8-sig")
    assert [case.texts[0] for case in read_test(tmp_path / "test.jsonl", None).cases] == ["a\u2028b", "c"]


ROW = {"filename": "a.jpg", "caption": "a", "negative_caption": "b"}
FOIL = {"id": 1, "image_id": 2, "caption": "a", "foil": True}
BOX = {"image_path": "a.jpg", "true_caption": "a", "false_caption": "b", "bbox_x": 0, "bbox_y": 0, "bbox_w": 9}


@pytest.mark.parametrize(("content", "message"), [
    ("not json", "is no JSON"), ("[" * 5000, "is no JSON"),
    ([1, 2], "is none of the tests"), ({}, "is none of the tests"),
    ([{"image": "a.jpg", "caption": "a"}], "is none of the tests"), ({"1": ROW, "2": 5}, "row 1 is a int"),
    ({"1": ROW, "2": ROW | {"caption": " "}}, "row 1 has no text 'caption'"),
    ({"1": ROW, "2": {"caption": "a", "negative_caption": "b"}}, "row 1 has no text 'filename'"),
    ([BOX], "row 0 has no numbers bbox_x"), ([BOX | {"bbox_h": "4"}], "row 0 has no numbers"),
    ([BOX | {"bbox_h": 0}], "row 0 has an empty box"),
    ([{"image_0": "a", "caption_0": "a", "caption_1": "b"}], "row 0 has no text 'image_1'"),
    ([{"file_path": "a", "positive_sample": "a"}], "row 0 has no texts in adversarial_samples"),
    ({"images": [], "annotations": [FOIL]}, "has no image in the file"),
    ({"images": [{"id": 2, "file_name": "a"}], "annotations": [FOIL]}, "has no original text"),
    ({"a": {"human_judgement": [{"caption": "a"}], "image_path": "a"}}, "a judgement without caption or rating"),
    ({"a": {"human_judgement": [{"caption": "a", "rating": 10**400}], "image_path": "a"}}, "without caption or rating"),
    ([BOX | {"bbox_h": float("nan")}], "row 0 has no numbers"), ([BOX | {"bbox_h": 1e308}], "row 0 has no numbers"),
    ('{"1": {"negative_caption": "a"}, "1": {}}', "'1' occurs twice in an object"),
    ({"1": ROW | {"caption": "half \ud83d"}}, "row 0 has half a character, U+D83D, in 'caption'"),
    ([{"file_path": "a", "positive_sample": "a", "adversarial_samples": ["b"]}], "no texts in adversarial_samples"),
    ({"images": 5, "annotations": [FOIL]}, "a int is in place of a list"),
    ({"images": [{"id": [2], "file_name": "a"}], "annotations": [FOIL]}, "row 0 has no 'id'"),
    ({"images": [], "annotations": [FOIL | {"foil": "False"}]}, "'foil' must be true or false, not 'False'"),
    ({"images": [], "annotations": [FOIL | {"foil": False, "caption": text} for text in "ab"]}, "rows have the id 1"),
])  # fmt: skip
def test_other_files_say_what_is_wrong(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "test.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"test\.json") as caught:
        read_test(path, None)
    assert message in str(caught.value)


def test_missing_files_and_mixed_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No file at"):
        read_test(tmp_path / "nothing.json", None)
    with pytest.raises(FileNotFoundError, match=r"holds no \.json"):
        read_test(tmp_path, None)
    sugarcrepe(tmp_path, 2)
    aro(tmp_path, 2)
    with pytest.raises(ValueError, match="holds files of several tests"):
        read_test(tmp_path, None)
