"""Numbers of texts: digits of all scripts, Chinese numerals, and number words of a language."""

from __future__ import annotations

import pytest

from capfilt.fuse.numbers import NumberReader, normalise

TEXTS = {
    "1,200 km in 2015": {"1200", "2015"},
    "1.200,5 km": {"1200.5"},
    "3.5 or 3,5 m": {"3.5"},
    "٣ قطط": {"3"},
    "२ कुत्ते": {"2"},
    "一只狗和两只猫": {"2"},
    "二十五扇窗，二〇二四年，三万五千": {"25", "2024", "35000"},
    "a dog, one cat": set(),
    "twenty dogs, the second of seven": {"20", "2", "7"},
    "a hundred dogs, one million cats": {"100", "1000000"},
    "iPhone15 and B52": {"15", "52"},
    "007": {"7"},
    "1" * 5000: {"1" * 5000},
    "亿" * 5000: {"亿" * 5000},
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_numbers_are_found_with_their_values(text: str) -> None:
    assert {number.value for number in NumberReader(["en"]).find(normalise(text))} == TEXTS[text]


def test_number_words_belong_to_languages() -> None:
    text = normalise("Deux chiens, zwei Hunde, two dogs")
    values = {tuple(languages): NumberReader(languages).find(text) for languages in ([], ["fr"], ["de", "en"])}
    assert [[number.written for number in found] for found in values.values()] == [[], ["deux"], ["zwei", "two"]]


@pytest.mark.parametrize("language", ["en", "de", "fr", "es", "it", "pt", "nl", "ru", "pl", "tr", "ko", "ar", "vi"])
def test_small_numbers_of_many_languages_are_known(language: str) -> None:
    reader = NumberReader([language])
    assert {str(value) for value in range(2, 11)} <= set(reader.words.values()) and "one" not in reader.words


def test_numbers_are_spelled_as_cardinals_and_ordinals() -> None:
    assert NumberReader(["en", "fr"]).spellings("5") == [["five"], ["fifth"], ["cinq"], ["cinquième"]]
    assert NumberReader(["en"]).spellings("3.5") == [] == NumberReader([]).spellings("5")
    assert NumberReader(["en"]).spellings("1" * 5000) == []


def test_an_unknown_language_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no number words of 'xx'; languages is a list of am, ar, .*, or empty"):
        NumberReader(["xx"])
