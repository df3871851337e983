"""Flickr8k's ratings, from the text files and from CLIPScore's JSON files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from public_tests import caption, colour_of, flickr8k

from capfilt.judge.formats import read_test


def test_each_expert_counts_and_a_pictures_own_text_does_not(tmp_path: Path) -> None:
    expert, crowd = flickr8k(tmp_path, 4)
    test = read_test(expert, None)
    assert (test.name, test.tau, len(test.cases)) == ("Flickr8k-Expert", "c", 4)
    assert test.cases[0].texts == [caption(n, colour_of(n)) for n in (1, 2, 3) for _ in range(3)]
    assert test.cases[0].truth == (3, 2, 3, 2, 2, 2, 1, 1, 1)
    test = read_test(crowd, None)
    assert (test.name, test.tau) == ("Flickr8k-CF", "b")
    assert test.cases[0].truth == pytest.approx((1, 2 / 3, 1 / 3, 0)) and len(test.cases[0].texts) == 4


def test_the_json_files_of_clipscore_give_the_same_judgements(tmp_path: Path) -> None:
    expert, _ = flickr8k(tmp_path, 3)
    plain = read_test(expert, None)
    content = {
        case.picture.path: {
            "image_path": case.picture.path,
            "human_judgement": [
                {"caption": text, "rating": rating} for text, rating in zip(case.texts, case.truth, strict=True)
            ]
            + [{"caption": "no rating", "rating": float("nan")}],
        }
        for case in plain.cases
    }
    (tmp_path / "flickr8k.json").write_text(json.dumps(content))
    test = read_test(tmp_path / "flickr8k.json", None)
    assert (test.cases, test.name, test.tau) == (plain.cases, plain.name, plain.tau)


@pytest.mark.parametrize(("lines", "message"), [
    ("a.jpg\tb.jpg#0\t1\t2\n", "line 1, has 4 columns"), ("", "has no rating"),
    ("a.jpg\tb.jpg#0\t1\t2\t5\n", "neither three ratings"), ("a.jpg\tb.jpg#0\t0.5\t1\t3\n", "neither three ratings"),
    ("a.jpg\tz.jpg#0\t1\t2\t3\n", "rates the text z.jpg#0, which"),
])  # fmt: skip
def test_other_text_files_say_what_is_wrong(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "Flickr8k.token.txt").write_text("b.jpg#0\ta dog\n")
    (tmp_path / "ExpertAnnotations.txt").write_text(lines)
    with pytest.raises(ValueError, match="ExpertAnnotations") as caught:
        read_test(tmp_path / "ExpertAnnotations.txt", None)
    assert message in str(caught.value)


def test_the_texts_of_the_ratings_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "ExpertAnnotations.txt").write_text("a.jpg\tb.jpg#0\t1\t2\t3\n")
    with pytest.raises(FileNotFoundError, match=r"Flickr8k\.token\.txt"):
        read_test(tmp_path / "ExpertAnnotations.txt", None)
