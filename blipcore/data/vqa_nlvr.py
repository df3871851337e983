"""Annotation files of VQA and NLVR2 -> one record a row.

In, told apart by what a row holds:

    VQA v2, Visual Genome QA (BLIP's lists)   {"question_id", "question", "image": path, "dataset": "vqa" or "vg",
                                               "answer": [text, ...] of ten people, or one text (vg)}
    easy-vqa (the package's questions.json)   [question, answer, number of the picture images/N.png]
    NLVR2 (BLIP's lists)                      {"images": [left path, right path], "sentence", "label": "True"}

Paths are relative to the file, or to `image_root`. A test split of VQA has no "answer". Out: `Question`s, `ImagePair`s.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from blipcore.data.annotations import PART_ROWS, Part
from blipcore.io.json_rows import BEGIN, Place, read_rows

VISUAL_GENOME_WEIGHT = 0.2  # of an answer that one person gave (official data set code)
LABELS = {"True": True, "False": False, True: True, False: False}


class Question(TypedDict):
    """One question about one picture; `key` is the picture's path as the file gives it."""

    question_id: int | str
    key: str
    image: Path
    question: str
    answers: list[str]  # one for each person asked; empty where the file has none
    weights: dict[str, float]  # of each different answer in training: the share of people who gave it


class ImagePair(TypedDict):
    """A sentence about two pictures, and whether it is true."""

    keys: tuple[str, str]
    images: tuple[Path, Path]
    sentence: str
    label: bool


def read_questions(
    path: str | Path, image_root: str | Path | None = None, need_answers: bool = True, part: Part | None = None
) -> list[Question]:
    """The questions of a VQA file, or of a `part` of it; FileNotFoundError, or ValueError with file and row."""
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    return [_question(row, path, place.number, root, need_answers) for place, row in _rows(path, part)]


def read_pairs(path: str | Path, image_root: str | Path | None = None, part: Part | None = None) -> list[ImagePair]:
    """The sentences of an NLVR2 file, or of a `part` of it; FileNotFoundError, or ValueError with file and row."""
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    return [_pair(row, f"{path}, row {place.number}", root) for place, row in _rows(path, part)]


def read_answers(path: str | Path) -> list[str]:
    """Candidate answers from a JSON list (BLIP's answer_list.json) or from lines of text; each once, in their order."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"answer list {path} does not exist")
    text = path.read_text(encoding="utf-8-sig")
    try:
        answers = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except ValueError as error:
        raise ValueError(f"answer list {path} is not valid JSON: {error}") from None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"answer list {path} must hold a list of texts, or one a line in a .txt")
    answers = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    if not answers:
        raise ValueError(f"answer list {path} holds no answers")
    return answers


def split_rows(path: str | Path, rows: int = PART_ROWS) -> list[Part]:
    """Parts of `rows` rows, so that nobody has to hold a long file; reads it once."""
    parts: list[Part] = []
    start, stop = BEGIN, 0
    for place, _ in _rows(Path(path), None):
        if place.number - start.number == rows:
            parts.append(Part(start, stop, rows))
            start = place
        stop = place.number + 1
    return [*parts, Part(start, stop, stop - start.number)]


def _rows(path: Path, part: Part | None) -> Iterator[tuple[Place, object]]:
    """The rows of a file or a part; at least one, or ValueError."""
    place = None
    for place, row in read_rows(path, part.start if part else BEGIN):
        if part and place.number >= part.stop:
            return
        yield place, row
    if place is None:
        raise ValueError(f"annotation file {path} holds no rows")


def _question(row: object, path: Path, number: int, root: Path, need_answers: bool) -> Question:
    where = f"{path}, row {number}"
    if isinstance(row, list) and len(row) == 3 and isinstance(row[2], int):  # easy-vqa
        row = {"question": row[0], "answer": row[1], "image": f"images/{row[2]}.png"}
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a row must be an object with "question", "image" and "answer"')
    image, question, given = row.get("image"), row.get("question"), row.get("answer", [])
    if not isinstance(image, str) or not image:
        raise ValueError(f'{where}: "image" must be a path, found {image!r}')
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f'{where}: "question" must be a text, found {question!r}')
    answers = [given] if isinstance(given, str) else given
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f'{where}: "answer" must be a text or a list of texts, found {given!r}')
    if need_answers and not answers:
        raise ValueError(f'{where}: it has no "answer" to learn from')
    question_id = row.get("question_id", number)
    if not isinstance(question_id, int | str):
        raise ValueError(f'{where}: "question_id" must be a number or a string, found {question_id!r}')
    share = VISUAL_GENOME_WEIGHT if row.get("dataset") == "vg" else 1 / max(len(answers), 1)
    return {
        "question_id": question_id,
        "key": image,
        "image": root / image,
        "question": question,
        "answers": answers,
        "weights": {answer: count * share for answer, count in Counter(answers).items()},
    }


def _pair(row: Any, where: str, root: Path) -> ImagePair:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a row must be an object with "images", "sentence" and "label"')
    images, sentence, label = row.get("images"), row.get("sentence"), row.get("label")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) and i for i in images):
        raise ValueError(f'{where}: "images" must be two paths, found {images!r}')
    if not isinstance(sentence, str) or not sentence.strip():
        raise ValueError(f'{where}: "sentence" must be a text, found {sentence!r}')
    if not isinstance(label, str | bool) or label not in LABELS:
        raise ValueError(f'{where}: "label" must be "True" or "False", found {label!r}')
    left, right = images
    return {"keys": (left, right), "images": (root / left, root / right), "sentence": sentence, "label": LABELS[label]}
