"""The check of answers for `capfilt fuse`: their names, numbers and quotations must occur in one of the inputs.

    number      in digits of any script, in Chinese numerals, or as a word of the chosen languages
    name        a capitalised word inside a sentence, and a word with further capitals anywhere
    first word  of a sentence: a word that no input has, in the languages of `FUNCTION_WORDS`
    quotation   text in quotation marks

In scripts without capitals, such as Chinese, Arabic and Hindi, names cannot be told from other words: only numbers,
quotations and Latin words are checked, and the texts are counted as `names_unchecked`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from capfilt.filter.sentences import split_sentences
from capfilt.fuse.numbers import NumberReader, is_han, normalise

# Words that begin sentences and are no names. Other languages have no check of first words.
_ENGLISH = """
a about above across after against all along alongside amid among an and another around as at atop before behind
below beneath beside besides between beyond both but by close during each either every everything few for from
front he her here high his how i if in inside into is it its just like many more most much near nearby neither
next no nobody none nor not nothing of off on one only or other our out outside over several she so some someone
something such that the their them there these they this those though through to together toward towards two
under underneath up upon various we what when where which while who whose with within without you your
"""
FUNCTION_WORDS = {"en": frozenset(_ENGLISH.split())}
# Languages that capitalise all nouns, so that an inflected noun of an input is no invented name.
CAPITALISED_NOUNS = ("de",)
# Letters that two forms of a word share.
STEM = 4
_WORD = re.compile(r"[^\W\d_]+")
_QUOTATION = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|「([^」]+)」|『([^』]+)』|《([^》]+)》')
_MAX_INVENTED = 5  # words in a reason


class Guard:
    """Finds names, numbers and quotations of an answer that no input has."""

    def __init__(self, languages: Sequence[str], first_words: bool = True) -> None:
        """Check number words and first words of `languages`; ValueError for a language without number words."""
        self.numbers = NumberReader(languages)
        known = [language for language in languages if language in FUNCTION_WORDS]
        self.function_words = frozenset().union(*(FUNCTION_WORDS[language] for language in known))
        self.checks_first_words = first_words and bool(known) and len(known) == len(languages)
        self.has_noun_capitals = any(language in CAPITALISED_NOUNS for language in languages)

    def settings(self) -> dict[str, object]:
        """Return what is checked, for the manifest."""
        return {"languages": self.numbers.languages, "first_words": self.checks_first_words}

    def problem(self, answer: str, inputs: Iterable[str]) -> str | None:
        """Return the invented words of an answer, as `reason: words`; None if all are in an input."""
        given = [normalise(text) for text in inputs]
        for reason, invented in (
            ("invented_number", self._invented_numbers(answer, given)),
            ("invented_name", self._invented_names(answer, given)),
            ("invented_quotation", [quote for quote in _quotations(answer) if not _holds(given, quote)]),
        ):
            if invented:
                return f"{reason}: {', '.join(list(dict.fromkeys(invented))[:_MAX_INVENTED])}"
        return None

    def _invented_numbers(self, answer: str, given: list[str]) -> list[str]:
        values = {number.value for text in given for number in self.numbers.find(text)}
        spelled = {word for value in values for words in self.numbers.spellings(value) for word in words}
        known_words = spelled | {word for text in given for word in _WORD.findall(text)}
        sentences = [f" {' '.join(_WORD.findall(text))} " for text in given]

        def is_known(written: str, value: str) -> bool:
            if value in values or written in known_words or (is_han(written) and _holds(given, written)):
                return True
            spellings = self.numbers.spellings(value) if written[0].isdecimal() else []
            return any(f" {' '.join(words)} " in text for words in spellings for text in sentences)

        return [written for written, value in self.numbers.find(normalise(answer)) if not is_known(written, value)]

    def _invented_names(self, answer: str, given: list[str]) -> list[str]:
        answer = unicodedata.normalize("NFKC", answer)
        known = {word for text in given for word in _WORD.findall(text)}
        starts = {_first_word(answer, start, end) for start, end in split_sentences(answer)}
        invented = []
        for match in _WORD.finditer(answer):
            word, lower = match[0], match[0].casefold()
            is_first = match.start() in starts
            if not word[0].isupper() and not any(letter.isupper() for letter in word):
                continue
            if (
                {lower, lower.removesuffix("s"), lower + "s"} & known
                or lower in self.function_words
                or lower in self.numbers.words
            ):
                continue
            is_cased_inside = any(letter.isupper() for letter in word[1:])
            if is_first and not is_cased_inside and (not self.checks_first_words or _has_stem(known, lower)):
                continue
            if self.has_noun_capitals and _has_stem(known, lower):
                continue
            if _is_suffix(answer, match):
                continue
            invented.append(word)
        return invented


def has_caseless_letters(text: str) -> bool:
    """Return whether a text has letters of a script without capitals."""
    return any(character.isalpha() and unicodedata.category(character) == "Lo" for character in text)


def _first_word(text: str, start: int, end: int) -> int:
    match = _WORD.search(text, start, end)
    return match.start() if match else -1


def _has_stem(known: set[str], word: str) -> bool:
    return any(word[:STEM] == other[:STEM] for other in known) if len(word) >= STEM else False


def _is_suffix(text: str, match: re.Match[str]) -> bool:
    """Return whether a word is the S of a possessive in capitals, as in MARY'S."""
    return match[0] == "S" and text[match.start() - 1 : match.start()] in ("'", "’")


def _quotations(answer: str) -> list[str]:
    return [next(filter(None, match.groups())) for match in _QUOTATION.finditer(answer)]


def _holds(given: list[str], words: str) -> bool:
    words = normalise(words).strip(" .,;:!?。，")
    return any(words in text for text in given)
