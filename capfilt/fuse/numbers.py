"""Numbers of a text: digits of all scripts, Chinese numerals, and number words of the chosen languages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# A number in digits, with separators of thousands and decimals.
_DIGITS = re.compile(r"\d+(?:[.,٫٬]\d+)*")
_THOUSANDS = re.compile(r"[.,٬](?=\d{3}(?!\d))")
_WORD = re.compile(r"[^\W\d_]+")
# Values with words of their own; the words of larger ones are made of these.
_VALUES = (*range(101), *range(200, 1000, 100), 1000, 10**6, 10**9)
# Digits; longer numbers, such as those of products, and longer runs of numerals are compared as they are written.
_MAX_SPELLED = 12


class Number(NamedTuple):
    """A number in a text: as it is written, and its value as decimal digits, such as "7" or "3.5"."""

    written: str
    value: str


class NumberReader:
    """Finds the numbers of texts. The word for one, which is often an article, is no number."""

    def __init__(self, languages: Sequence[str]) -> None:
        """Learn the number words of `languages`, by their codes in num2words; ValueError for one that it lacks."""
        self.languages = list(languages)
        # word -> value
        self.words: dict[str, str] = {}
        self._num2words: Any = None
        if not languages:
            return
        try:
            import num2words
        except ImportError:
            raise ImportError("Number words need: pip install 'capfilt[text]'") from None
        self._num2words = num2words.num2words
        known = sorted(num2words.CONVERTER_CLASSES)
        for language in languages:
            if language not in known:
                raise ValueError(
                    f"There are no number words of '{language}'; languages is a list of {', '.join(known)}, or empty "
                    "for numbers in digits alone."
                )
            ones = _WORD.findall(self._spell(1, language, "cardinal"))
            for value in _VALUES:
                for form in ("cardinal", "ordinal"):
                    words = _WORD.findall(self._spell(value, language, form))
                    if value >= 100:  # "one hundred" and "a hundred"
                        words = [word for word in words if word not in ones] or words
                    if len(words) == 1 and (value, form) != (1, "cardinal"):
                        self.words.setdefault(words[0], str(value))
            for word in ones:
                self.words.pop(word, None)

    def find(self, text: str) -> list[Number]:
        """Return the numbers of a normalised text, see `normalise`, in no particular order."""
        numbers = [Number(match[0], _value_of_digits(match[0])) for match in _DIGITS.finditer(text)]
        numbers += [Number(word, self.words[word]) for word in _WORD.findall(text) if word in self.words]
        return numbers + [Number(run, value) for run, value in _han_numbers(text) if value != "1"]

    def spellings(self, value: str) -> list[list[str]]:
        """Return the words for a whole number in each language, as cardinal and ordinal."""
        if not value.isdecimal() or len(value) > _MAX_SPELLED:
            return []
        forms = ("cardinal", "ordinal")
        texts = (self._spell(int(value), language, form) for language in self.languages for form in forms)
        return [words for words in map(_WORD.findall, texts) if words]

    def _spell(self, value: int, language: str, form: str) -> str:
        try:
            return normalise(str(self._num2words(value, lang=language, to=form)))
        except (NotImplementedError, TypeError, ValueError, KeyError, IndexError, OverflowError, AttributeError):
            return ""  # num2words lacks the ordinals or large numbers of some languages


def normalise(text: str) -> str:
    """Return a text with one form of each letter, in lower case and with ordinary blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_han(text: str) -> bool:
    """Return whether a text begins with a Chinese character."""
    return "\u3400" <= text[:1] <= "\u9fff" or text[:1] == "〇"


def _numeral(character: str) -> float | None:
    # Unicode gives no value to the two of counted things.
    return 2 if character in "两兩" else unicodedata.numeric(character, None)


def _value_of_digits(written: str) -> str:
    """Return "1000" for 1,000 and "3.5" for 3,5, in ASCII digits."""
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in written)
    whole = _THOUSANDS.sub("", digits).replace(",", ".").replace("٫", ".")
    return whole.lstrip("0") or "0" if "." not in whole else whole


def _han_numbers(text: str) -> Iterable[tuple[str, str]]:
    """Yield runs of Chinese numerals and their values."""
    run = ""
    for character in f"{text}\n":
        if is_han(character) and _numeral(character) is not None:
            run += character
        elif run:
            yield run, _value_of_han(run)
            run = ""


def _value_of_han(run: str) -> str:
    if len(run) > _MAX_SPELLED:
        return run
    total = section = digit = 0
    for character in run:
        value = int(_numeral(character) or 0)
        if value >= 10_000:
            total, section, digit = (total + section + digit or 1) * value, 0, 0
        elif value >= 10:
            section, digit = section + (digit or 1) * value, 0
        else:
            digit = 10 * digit + value  # 二〇二四
    return str(total + section + digit)
