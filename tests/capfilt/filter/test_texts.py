"""Text columns: cleaning equals the text-by-text function, and different texts have different hashes."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from blipcore.model.tokenizer import clean_caption
from capfilt.filter.texts import clean_texts, hash_ngrams, hash_strings, split_words

EDGE_CASES = [
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
EDGE_CASES += [" ".join(["word"] * count) for count in (29, 30, 31, 200)] + ["a\nb " * 40]


def random_texts(count: int) -> list[str]:
    rng = random.Random(7)
    alphabet = "aB .!\"()*#:;~\t\n\r\x0b\x1c\x85\xa0\u1680\u2003\u2028\u3000éÉßİΣσς红ひ😀'-,"
    return ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(count)]


def test_clean_texts_equals_clean_caption() -> None:
    texts = EDGE_CASES + random_texts(3000)
    assert clean_texts(pa.array(texts)).to_pylist() == [clean_caption(text) for text in texts]
    assert clean_texts(pa.chunked_array([["A."], [None, "B!"]])).to_pylist() == ["a", "", "b"]
    assert clean_texts(pa.array([], pa.string())).to_pylist() == []


def test_clean_texts_lowers_every_letter_as_python_does() -> None:
    letters = [chr(code) for code in range(0x1C80) if chr(code).isalpha()]  # above, Unicode versions differ
    letters += [chr(code) for code in range(0x1C90, 0xA000) if chr(code).isalpha()]
    assert clean_texts(pa.array(letters)).to_pylist() == [clean_caption(letter) for letter in letters]


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
def test_split_words(text: str | None, expected: list[str]) -> None:
    assert split_words(pa.array([text], pa.string())).to_pylist() == [expected]


def test_only_equal_texts_have_equal_hashes() -> None:
    texts = list(dict.fromkeys(EDGE_CASES + random_texts(3000) + [f"{n}" for n in range(20_000)]))
    hashes = hash_strings(pa.array(texts))
    assert len(np.unique(hashes)) == len(texts)
    assert (hash_strings(pa.array(texts).slice(5, 100)) == hashes[5:105]).all()
    assert (hash_strings(pa.chunked_array([texts[:9], texts[9:50]])) == hashes[:50]).all()
    assert hash_strings(pa.array([], pa.string())).tolist() == []
    assert hash_strings(pa.array(["", ""])).tolist() == [0, 0]


def test_no_ngram_spans_two_texts() -> None:
    lists = split_words(pa.array(["a b c", "", "c", "a b", "b a"]))
    assert [len(hash_ngrams(lists, n)) for n in (1, 2, 3, 4)] == [8, 4, 1, 0]
    assert [len(np.unique(hash_ngrams(lists, n))) for n in (1, 2)] == [3, 3]
    assert len(hash_ngrams(split_words(pa.array(["a"])), 3)) == 0
    assert len(hash_ngrams(split_words(pa.array([], pa.string())), 1)) == 0
