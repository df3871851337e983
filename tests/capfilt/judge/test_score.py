"""The blind control shows every text another picture."""

from __future__ import annotations

from pathlib import Path

from capfilt.judge.formats import Case, Picture, PublicTest
from capfilt.judge.score import other_pictures


def make(pictures: list[Picture]) -> PublicTest:
    return PublicTest("test", "pairs", [Case(picture, ["a", "b"]) for picture in pictures], Path())


def test_each_picture_is_replaced_by_one_of_another_file() -> None:
    boxes = [Picture("a.jpg", (0, 0, number, 9)) for number in range(1, 6)]
    pictures = [*boxes, Picture("b.jpg"), Picture("c.jpg"), Picture("0", shard="00000"), Picture("0", shard="00001")]
    for seed in range(20):
        others = other_pictures(make(pictures), seed)
        assert others.keys() == set(pictures)
        assert all((other.shard, other.path) != (one.shard, one.path) for one, other in others.items())
    assert other_pictures(make(pictures), 1) == other_pictures(make(pictures), 1) != other_pictures(make(pictures), 2)


def test_two_pictures_are_exchanged() -> None:
    a, b = Picture("a.jpg"), Picture("b.jpg")
    assert other_pictures(make([a, b, a])) == {a: b, b: a}
