"""Human ratings of captions: Flickr8k-Expert and Flickr8k-CF, as distributed and as prepared by CLIPScore.

    ExpertAnnotations.txt        picture, text id, three ratings from 1 to 4
    CrowdFlowerAnnotations.txt   picture, text id, share of yes, number of yes, number of no
    Flickr8k.token.txt           text id (picture#number), text

As in SPICE and CLIPScore (arXiv 2104.08718, appendix A), each expert's rating is a judgement of its own, and a text
that is one of the picture's own five is left out of the experts' file. Texts are compared by Kendall's tau-c (experts)
and tau-b (CF).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TOKENS = "Flickr8k.token.txt"
MAX_RATING = 1e9
# picture, text, rating
Judgement = tuple[str, str, float]


class Annotations(NamedTuple):
    """The rows of an annotation file, and their judgements."""

    rows: list[list[str]]
    judgements: list[Judgement]


def read_annotations(path: Path) -> Annotations:
    """Read ExpertAnnotations.txt or CrowdFlowerAnnotations.txt with the texts beside it; ValueError for other files."""
    rows = list(_lines(path, 5))
    if not rows:
        raise ValueError(f"{path} has no rating; download it again.")
    is_crowd = is_crowdflower(rows)
    if not is_crowd and not all(rating in ("1", "2", "3", "4") for row in rows for rating in row[2:]):
        raise ValueError(
            f"{path} holds neither three ratings from 1 to 4 per row, as ExpertAnnotations.txt, nor a share of yes "
            "with its numbers, as CrowdFlowerAnnotations.txt."
        )
    texts, own = _read_tokens(path.with_name(TOKENS))
    judgements = []
    for picture, text_id, *numbers in rows:
        if text_id not in texts:
            raise ValueError(f"{path} rates the text {text_id}, which {TOKENS} lacks; download both again.")
        text = texts[text_id]
        if is_crowd:
            judgements.append((picture, text, float(numbers[0])))
        elif text not in own[picture.partition(".")[0]]:
            judgements += [(picture, text, float(number)) for number in numbers]
    return Annotations(rows, judgements)


def is_crowdflower(rows: list[list[str]]) -> bool:
    """Return whether the third column of every row is the share of yes that the next two give."""
    try:
        return all(
            math.isclose(float(share), int(yes) / (int(yes) + int(no)), abs_tol=1e-5) for _, _, share, yes, no in rows
        )
    except (ValueError, ZeroDivisionError):
        return False


def read_clipscore(content: dict[str, Any]) -> list[Judgement]:
    """Return the judgements in {picture: {image_path, human_judgement: [{caption, rating}]}}; NaN ratings are none."""
    judgements = []
    for name, picture in content.items():
        fields = picture if isinstance(picture, dict) else {}
        path, ratings = fields.get("image_path"), fields.get("human_judgement")
        if not isinstance(path, str) or not isinstance(ratings, list):
            raise ValueError(f"picture {name} has no image_path with a list human_judgement.")
        for rating in ratings:
            text: Any = rating.get("caption") if isinstance(rating, dict) else None
            number: Any = rating.get("rating") if isinstance(rating, dict) else None
            is_number = type(number) in (int, float) and (number != number or abs(number) <= MAX_RATING)
            if not isinstance(text, str) or not text.strip() or not is_number:
                raise ValueError(f"picture {name} has a judgement without caption or rating.")
            if number == number:  # not NaN
                judgements.append((path, " ".join(text.split()), float(number)))
    return judgements


def _read_tokens(path: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return the text of each id, and the texts of each picture."""
    if not path.is_file():
        raise FileNotFoundError(f"The ratings name texts by their id in {TOKENS}; put it at {path}.")
    texts: dict[str, str] = {}
    own: dict[str, set[str]] = defaultdict(set)
    for text_id, text in _lines(path, 2):
        texts[text_id] = text
        own[text_id.partition("#")[0].partition(".")[0]].add(text)
    return texts, own


def _lines(path: Path, columns: int) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            cells = line.strip().split("\t")
            if len(cells) == columns:
                yield cells
            elif line.strip():
                raise ValueError(f"{path}, line {number}, has {len(cells)} columns between tabs, not {columns}.")
