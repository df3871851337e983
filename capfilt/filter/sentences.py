"""Sentences of long captions: where they are, and the filter's score of each.

BLIP's filter reads 35 tokens, while the captions of vision-language models have 60 to 200. `SentenceScorer` scores the
whole text, of which the filter reads the start, and each of its sentences:

    itm_min     lowest ITM probability of a sentence
    itm_mean    mean of the sentences
    sentences   start, end, itm and truncated of each sentence, in characters of the text

A text of one sentence is scored once. A sentence that the filter cannot read whole is scored clause by clause, and its
score is the lowest of them; it is `truncated` if a clause is still too long, or it has more than eight parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image

from capfilt.filter.scorer import Runtime, Scorer
from capfilt.filter.vectors import PICTURE_VECTOR

SENTENCE_COLUMNS = ("itm_min", "itm_mean")
SENTENCES = pa.field(
    "sentences",
    pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("itm", pa.float32()), ("truncated", pa.bool_())])),
)
# Sentences of a text, the last with the rest of it, and scored parts of a sentence: a web text may be a whole page.
MAX_SENTENCES, MAX_PARTS = 40, 8
# Recorded in the manifest of the scores; another way to split is another value.
SPLITTER = "sentencex"
# For its abbreviations; sentencex splits at the stops of all scripts in each of its languages.
LANGUAGE = "en"

_LETTER = re.compile(r"[^\W\d_]")
# The end of a clause; an ASCII comma or colon inside a number or a time has no space after it.
_CLAUSE_END = re.compile(r"[,;:،؛]\s+|[、，；：]\s*|\s+[—–-]\s+|—")


class Span(NamedTuple):
    """Characters `start` to `end` of a text."""

    start: int
    end: int


class Sentence(NamedTuple):
    """A sentence with the parts of it that are scored; `truncated` if the filter cannot read one of them whole."""

    span: Span
    parts: list[str]
    truncated: bool

    def row(self, place: Mapping[str, int], itm: Sequence[float]) -> dict[str, Any]:
        """Return its row of `sentences`; `itm` are the scores of a picture, `place` maps each part to its own."""
        score = lowest([itm[place[part]] for part in self.parts])
        return {"start": self.span.start, "end": self.span.end, "itm": score, "truncated": self.truncated}


def lowest(scores: Sequence[float]) -> float:
    """Return the lowest score; NaN, which passes no limit, is below all numbers."""
    return min(scores, key=lambda score: (score == score, score))


def split_sentences(text: str) -> list[Span]:
    """Return the sentences of a text, in any language, without the white space around them.

    A piece without a letter, such as "1." or an emoji, belongs to the sentence after it, or at the end to the one
    before it. A text without letters is one sentence. Raises ImportError if sentencex is missing.
    """
    starts = [boundary["start_index"] for boundary in _boundaries(text)]
    pieces = [Span(start, end) for start, end in pairwise([*starts, len(text)])]
    sentences: list[Span] = []
    begin: int | None = None
    for start, end in pieces:
        begin = start if begin is None else begin
        if _LETTER.search(text, start, end):
            sentences.append(Span(begin, end))
            begin = None
    if begin is not None:
        sentences = [*sentences[:-1], Span(sentences[-1].start if sentences else 0, len(text))]
    return [_strip(text, sentence) for sentence in sentences]


def split_clauses(sentence: str, fits: Callable[[str], bool]) -> list[str]:
    """Split a sentence at the ends of its clauses into the longest parts that fit.

    A single clause that does not fit is a part of its own.
    """
    ends = [match.end() for match in _CLAUSE_END.finditer(sentence)]
    parts: list[str] = []
    for start, end in zip([0, *ends], [*ends, len(sentence)], strict=True):
        clause = sentence[start:end]
        if parts and (not _LETTER.search(clause) or fits(parts[-1] + clause)):
            parts[-1] += clause
        else:
            parts.append(clause)
    return [part.strip() for part in parts]


def _strip(text: str, span: Span) -> Span:
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    return Span(start, start + len(piece.strip()))


def _boundaries(text: str) -> list[dict[str, Any]]:
    try:
        import sentencex
    except ImportError:
        raise ImportError("Splitting texts into sentences needs: pip install 'capfilt[text]'") from None
    # Half a surrogate pair, which Rust's strings cannot hold, becomes one other character, and so does white space of
    # several bytes, on which sentencex 1.0.32 panics.
    plain = "".join(" " if letter.isspace() and letter != "\n" else letter for letter in text)
    try:
        return sentencex.get_sentence_boundaries(LANGUAGE, plain.encode("utf-8", "replace").decode("utf-8"))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
            raise
        return []


class SentenceScorer(Scorer):
    """A filter that also scores the sentences of each text, with one encoding of each picture."""

    def __init__(self, filter_: Scorer) -> None:
        self.filter = filter_
        self.name = f"{filter_.name}-sentences"
        self.columns = (*filter_.columns, *SENTENCE_COLUMNS)
        self.list_columns = (*filter_.list_columns, SENTENCES.name)
        self.settings = {**filter_.settings, "sentences": SPLITTER}
        self.uses_backend = filter_.uses_backend
        self.packages = (*filter_.packages, "sentencex")

    @property
    def fingerprint(self) -> str:
        return self.filter.fingerprint

    def load(self, runtime: Runtime) -> None:
        _boundaries("")
        self.filter.load(runtime)

    def prepare(self, image: Image.Image, /) -> Any:
        return self.filter.prepare(image)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return self.filter.truncated(texts)

    def score(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> dict[str, list[list[Any]]]:
        """Return the filter's columns, `SENTENCE_COLUMNS`, and as `sentences` a list of dicts per text."""
        split = [[self._split(text) for text in picture_texts] for picture_texts in texts]
        # Each different text or part of a picture is scored once.
        distinct_texts = [
            list(dict.fromkeys([*picture_texts, *(part for text in of_texts for item in text for part in item.parts)]))
            for picture_texts, of_texts in zip(texts, split, strict=True)
        ]
        scores = self.filter.score(inputs, distinct_texts)
        places = [{part: place for place, part in enumerate(of_picture)} for of_picture in distinct_texts]
        columns: dict[str, list[list[Any]]] = {
            column: [
                [of_picture[place[text]] for text in picture_texts]
                for picture_texts, place, of_picture in zip(texts, places, scores[column], strict=True)
            ]
            for column in (*self.filter.columns, *self.filter.list_columns)
        }
        rows = [
            [[sentence.row(place, itm) for sentence in sentences] for sentences in of_texts]
            for of_texts, place, itm in zip(split, places, scores["itm"], strict=True)
        ]
        values = [[[row["itm"] for row in of_text] for of_text in of_picture] for of_picture in rows]
        columns["itm_min"] = [[lowest(of_text) for of_text in of_picture] for of_picture in values]
        columns["itm_mean"] = [[sum(of_text) / len(of_text) for of_text in of_picture] for of_picture in values]
        vectors = {name: scores[name] for name in scores if name == PICTURE_VECTOR.name}
        return columns | {SENTENCES.name: rows} | vectors

    def _split(self, text: str) -> list[Sentence]:
        spans = split_sentences(text)
        if len(spans) > MAX_SENTENCES:
            spans = [*spans[: MAX_SENTENCES - 1], Span(spans[MAX_SENTENCES - 1].start, spans[-1].end)]
        # A single sentence keeps the white space around it, so its score is that of the whole text.
        pieces = [text] if len(spans) == 1 else [text[start:end] for start, end in spans]
        sentences = []
        for span, piece, too_long in zip(spans, pieces, self.truncated(pieces), strict=True):
            parts = split_clauses(piece, lambda part: not self.truncated([part])[0]) if too_long else [piece]
            is_cut = too_long and (len(parts) > MAX_PARTS or any(self.truncated(parts)))
            sentences.append(Sentence(span, parts[:MAX_PARTS], is_cut))
        return sentences
