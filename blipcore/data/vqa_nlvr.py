"""Annotation files of VQA and NLVR2, read as one record per row.

The format follows from the content of a row:

    VQA v2, Visual Genome QA (BLIP's lists)   {"question_id", "question", "image": path, "dataset": "vqa" or "vg",
                                               "answer": [text, ...] of ten people, or one text (vg)}
    easy-vqa (the package's questions.json)   [question, answer, number of the picture images/N.png]
    NLVR2 (BLIP's lists)                      {"images": [left path, right path], "sentence", "label": "True"}

Paths are relative to `image_root`, by default to the file. A test split of VQA has no "answer".
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from blipcore.data.annotations import ROWS_PER_PART, ListPart
from blipcore.io.json_rows import FIRST_ROW, JSON_LINES_SUFFIXES, RowStart, read_json_rows

VISUAL_GENOME_WEIGHT = 0.2  # weight of an answer that one person gave (official data set code)
LABELS = {"True": True, "False": False, True: True, False: False}


class Question(TypedDict):
    question_id: int | str
    key: str  # the picture's path as the file has it
    image: Path
    question: str
    answers: list[str]  # one per person; empty if the file has none
    weights: dict[str, float]  # weight of each distinct answer in training: the share of people who gave it


class ImagePair(TypedDict):
    """A sentence about two pictures; `label` is whether it is true."""

    keys: tuple[str, str]
    images: tuple[Path, Path]
    sentence: str
    label: bool


def read_questions(
    path: str | Path, image_root: str | Path | None = None, need_answers: bool = True, part: ListPart | None = None
) -> list[Question]:
    """Read the questions of a VQA file, or of a `part` of it.

    Raises FileNotFoundError, or ValueError with file and row.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    return [_parse_question(row, path, start.number, root, need_answers) for start, row in _rows(path, part)]


def read_image_pairs(
    path: str | Path, image_root: str | Path | None = None, part: ListPart | None = None
) -> list[ImagePair]:
    """Read the sentences of an NLVR2 file, or of a `part` of it.

    Raises FileNotFoundError, or ValueError with file and row.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    return [_parse_pair(row, f"{path}, row {start.number}", root) for start, row in _rows(path, part)]


def read_answers(path: str | Path) -> list[str]:
    """Read candidate answers from a JSON list (BLIP's answer_list.json) or from a text file, without repetitions."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No answer list at {path}.")
    text = path.read_text(encoding="utf-8-sig")
    try:
        answers = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path} must be a JSON list of answers, or a text file with one per line.")
    answers = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    if not answers:
        raise ValueError(f"{path} holds no answers.")
    return answers


def split_list(path: str | Path, rows: int = ROWS_PER_PART) -> list[ListPart]:
    """Split a file into parts of `rows` rows, without holding a long list in memory."""
    parts: list[ListPart] = []
    first, stop = FIRST_ROW, 0
    for start, _ in _rows(Path(path), None):
        if start.number - first.number == rows:
            parts.append(ListPart(first, stop, rows))
            first = start
        stop = start.number + 1
    return [*parts, ListPart(first, stop, stop - first.number)]


def _rows(path: Path, part: ListPart | None) -> Iterator[tuple[RowStart, object]]:
    """Yield the rows of a file or a part with their starts; raise ValueError if there is none."""
    if path.exists() and path.suffix.lower() not in (".json", *JSON_LINES_SUFFIXES):
        raise ValueError(f"{path} is no annotation file: questions and pairs come in a .json or .jsonl file.")
    is_empty = True
    for start, row in read_json_rows(path, part.start if part else FIRST_ROW):
        if part and start.number >= part.stop:
            return
        is_empty = False
        yield start, row
    if is_empty:
        raise ValueError(f"{path} holds no rows.")


def _parse_question(row: object, path: Path, number: int, root: Path, need_answers: bool) -> Question:
    location = f"{path}, row {number}"
    if isinstance(row, list) and len(row) == 3 and isinstance(row[2], int):  # easy-vqa
        row = {"question": row[0], "answer": row[1], "image": f"images/{row[2]}.png"}
    if not isinstance(row, dict):
        raise ValueError(f'{location}: a row must be an object with "question", "image" and "answer".')
    image, question, answer = row.get("image"), row.get("question"), row.get("answer", [])
    if not isinstance(image, str) or not image:
        raise ValueError(f'{location}: "image" must be a path, not {image!r}.')
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f'{location}: "question" must be a text, not {question!r}.')
    answers = [answer] if isinstance(answer, str) else answer
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
        raise ValueError(f'{location}: "answer" must be a text or a list of texts, not {answer!r}.')
    if need_answers and not answers:
        raise ValueError(f'{location}: training needs an "answer".')
    question_id = row.get("question_id", number)
    if not isinstance(question_id, int | str):
        raise ValueError(f'{location}: "question_id" must be a number or a string, not {question_id!r}.')
    weight = VISUAL_GENOME_WEIGHT if row.get("dataset") == "vg" else 1 / max(len(answers), 1)
    return {
        "question_id": question_id,
        "key": image,
        "image": root / image,
        "question": question,
        "answers": answers,
        "weights": {text: count * weight for text, count in Counter(answers).items()},
    }


def _parse_pair(row: Any, location: str, root: Path) -> ImagePair:
    if not isinstance(row, dict):
        raise ValueError(f'{location}: a row must be an object with "images", "sentence" and "label".')
    images, sentence, label = row.get("images"), row.get("sentence"), row.get("label")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) and i for i in images):
        raise ValueError(f'{location}: "images" must be two paths, not {images!r}.')
    if not isinstance(sentence, str) or not sentence.strip():
        raise ValueError(f'{location}: "sentence" must be a text, not {sentence!r}.')
    if not isinstance(label, str | bool) or label not in LABELS:
        raise ValueError(f'{location}: "label" must be "True" or "False", not {label!r}.')
    left, right = images
    return {"keys": (left, right), "images": (root / left, root / right), "sentence": sentence, "label": LABELS[label]}
