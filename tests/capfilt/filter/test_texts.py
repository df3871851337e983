"""Columns of texts: the same as the text-by-text functions, and hashes that tell texts apart."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from blipcore.model.tokenizer import clean_caption
from capfilt.filter.texts import clean, hashes, ngrams, words

ODD = [
    "",
    " ",
    "\n",
    "A\tB",
    "a  b\n\n",
    "...",
    "İstanbul ΣΑΣ",
    "红色 的 狗。",
    "x" * 5000,
    "one, two; three",
    "\u3000 a\x1c\x1d b \xa0",
]
ODD += [" ".join(["word"] * count) for count in (29, 30, 31, 200)] + ["a\nb " * 40]


def scrambled(count: int) -> list[str]:
    rng = random.Random(7)
    alphabet = "aB .!\"()*#:;~\t\n\r\x0b\x1c\x85\xa0\u1680\u2003\u2028\u3000éÉßİΣσς红ひ😀'-,"
    return ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(count)]


def test_clean_is_blips_cleaning() -> None:
    texts = ODD + scrambled(3000)
    assert clean(pa.array(texts)).to_pylist() == [clean_caption(text) for text in texts]
    assert clean(pa.chunked_array([["A."], [None, "B!"]])).to_pylist() == ["a", "", "b"]
    assert clean(pa.array([], pa.string())).to_pylist() == []


def test_clean_lowers_every_letter_as_python_does() -> None:
    letters = [chr(code) for code in range(0x1C80) if chr(code).isalpha()]  # beyond, Unicode versions differ
    letters += [chr(code) for code in range(0x1C90, 0xA000) if chr(code).isalpha()]
    assert clean(pa.array(letters)).to_pylist() == [clean_caption(letter) for letter in letters]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red dog, sleeping!", ["a", "red", "dog", "sleeping"]),
        ("红色的狗 dog", ["红", "色", "的", "狗", "dog"]),
        ("IMG_0001.jpg", ["img", "0001", "jpg"]),
        ("café Ünder", ["café", "ünder"]),
        (" ... ", []),
        (None, []),
    ],
)
def test_words(text: str | None, expected: list[str]) -> None:
    assert words(pa.array([text], pa.string())).to_pylist() == [expected]


def test_hashes_are_equal_for_equal_texts_alone() -> None:
    texts = list(dict.fromkeys(ODD + scrambled(3000) + [f"{n}" for n in range(20_000)]))
    found = hashes(pa.array(texts))
    assert len(np.unique(found)) == len(texts)
    assert (hashes(pa.array(texts).slice(5, 100)) == found[5:105]).all()
    assert (hashes(pa.chunked_array([texts[:9], texts[9:50]])) == found[:50]).all()
    assert hashes(pa.array([], pa.string())).tolist() == []
    assert hashes(pa.array(["", ""])).tolist() == [0, 0]


def test_ngrams_stay_within_a_text() -> None:
    lists = words(pa.array(["a b c", "", "c", "a b", "b a"]))
    assert [len(ngrams(lists, n)) for n in (1, 2, 3, 4)] == [8, 4, 1, 0]
    assert [len(np.unique(ngrams(lists, n))) for n in (1, 2)] == [3, 3]
    assert len(ngrams(words(pa.array(["a"])), 3)) == 0
    assert len(ngrams(words(pa.array([], pa.string())), 1)) == 0
