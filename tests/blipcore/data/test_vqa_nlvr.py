"""Annotation files of VQA and NLVR2: each format, and errors that name the bad row."""

import json
from pathlib import Path

import pytest

from blipcore.data.vqa_nlvr import read_answers, read_image_pairs, read_questions, split_list

VQA = {"question_id": 9, "question": "what?", "image": "a.png", "dataset": "vqa", "answer": ["red"] * 7 + ["blue"] * 3}
VG = {"question_id": 10, "question": "where?", "image": "b.png", "dataset": "vg", "answer": "here"}
PAIR = {"images": ["a.png", "b.png"], "sentence": "both are one", "label": "True", "identifier": "x"}


@pytest.fixture
def write(tmp_path):
    def to_file(*rows: object, name: str = "rows.json") -> Path:
        (tmp_path / name).write_text(json.dumps(list(rows)))
        return tmp_path / name

    return to_file


def test_questions_of_vqa_and_visual_genome(write) -> None:
    first, second = read_questions(write(VQA, VG))
    assert (first["question_id"], first["question"], first["key"]) == (9, "what?", "a.png")
    assert first["answers"] == VQA["answer"] and first["weights"] == pytest.approx({"red": 0.7, "blue": 0.3})
    assert second["answers"] == ["here"] and second["weights"] == {"here": 0.2}
    assert read_questions(write(VQA), image_root="/pictures")[0]["image"] == Path("/pictures/a.png")


def test_questions_of_easy_vqa(write) -> None:
    path = write(["what shape is it?", "circle", 17], ["is it red?", "no", 17])
    first, second = read_questions(path)
    assert first["image"] == path.parent / "images" / "17.png" and first["weights"] == {"circle": 1.0}
    assert [first["question_id"], second["question_id"]] == [0, 1]


def test_a_test_split_without_answers_is_refused_for_training(write) -> None:
    path = write({name: VQA[name] for name in ("question_id", "question", "image")})
    assert read_questions(path, need_answers=False)[0]["answers"] == []
    with pytest.raises(ValueError, match=r'rows\.json, row 0: training needs an "answer"'):
        read_questions(path)


@pytest.mark.parametrize("label", ["True", True])
def test_pairs_of_nlvr2(write, label) -> None:
    (pair,) = read_image_pairs(write(PAIR | {"label": label}))
    assert pair["keys"] == ("a.png", "b.png") and pair["label"] is True and pair["sentence"] == "both are one"


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (read_questions, "text", "a row must be an object"),
        (read_questions, ["what?", "red"], "a row must be an object"),
        (read_questions, VQA | {"image": None}, '"image" must be a path, not None'),
        (read_questions, VQA | {"question": " "}, '"question" must be a text'),
        (read_questions, VQA | {"answer": ["red", 2]}, '"answer" must be a text or a list of texts'),
        (read_questions, VQA | {"question_id": [1]}, '"question_id" must be a number or a string'),
        (read_image_pairs, [1], "a row must be an object"),
        (read_image_pairs, PAIR | {"images": ["a.png"]}, '"images" must be two paths'),
        (read_image_pairs, PAIR | {"sentence": 3}, '"sentence" must be a text'),
        (read_image_pairs, PAIR | {"label": "yes"}, '"label" must be "True" or "False", not \'yes\''),
        (read_image_pairs, PAIR | {"label": 1}, '"label" must be "True" or "False", not 1'),
    ],
)
def test_errors_name_the_bad_row(write, read, row, message) -> None:
    good = PAIR if read is read_image_pairs else VQA
    with pytest.raises(ValueError, match=message) as error:
        read(write(good, row))
    assert str(error.value).startswith(f"{write(good, row)}, row 1: ")


def test_missing_and_empty_files_are_refused(write, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="No annotation file at"):
        read_questions(tmp_path / "none.json")
    with pytest.raises(ValueError, match="holds no rows"):
        read_image_pairs(write())


def test_parts_hold_every_row_once(write) -> None:
    path = write(*(VQA | {"question_id": n} for n in range(7)))
    parts = split_list(path, rows=3)
    assert [part.pictures for part in parts] == [3, 3, 1]
    assert [[q["question_id"] for q in read_questions(path, part=part)] for part in parts] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]


def test_candidate_answers_come_from_text_or_json(tmp_path) -> None:
    (tmp_path / "answers.txt").write_text("red\n\nblue \nred\n")
    (tmp_path / "answers.json").write_text('["red", "blue"]')
    assert read_answers(tmp_path / "answers.txt") == read_answers(tmp_path / "answers.json") == ["red", "blue"]
    (tmp_path / "answers.json").write_text('{"red": 1}')
    with pytest.raises(ValueError, match="must be a JSON list of answers"):
        read_answers(tmp_path / "answers.json")
    with pytest.raises(FileNotFoundError, match="No answer list at"):
        read_answers(tmp_path / "none.txt")
