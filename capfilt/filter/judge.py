"""A vision-language model as judge: one more scorer of `capfilt filter`, behind a server or of transformers.

    by vqa      column `vqa`: probability of "yes" over "yes" and "no", asked whether the picture shows the text;
                VQAScore, arXiv 2404.01291, with the probabilities of all spellings added
    by rubric   columns `match`, `specificity`, `fluency`: whole numbers from 1 to 5, for servers without probabilities

A text without an answer has no score, and the reason in the column `judge_error`: see `ServerJudge`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from capfilt.vlm.answer import MAX_MESSAGE, TOO_LONG, Answer, is_refusal
from capfilt.vlm.server import ServerConfig

JUDGE_ERROR = pa.field("judge_error", pa.string())
VQA = "vqa"
QUESTION = 'Does this picture show: "{text}"? Answer with yes or no.'
# axis -> its question
AXES = {
    "match": "is everything that the caption says to be seen in the picture?",
    "specificity": "does the caption name what distinguishes this picture from others?",
    "fluency": "is the caption a well-written sentence, whatever the picture shows?",
}
RUBRIC = (
    'Rate this caption of the picture: "{text}"\nGive a whole number from 1 (worst) to 5 (best) on each axis. '
    + " ".join(f"{name}: {question}" for name, question in AXES.items())
    + " Answer with a JSON object alone, such as "
    + json.dumps(dict.fromkeys(AXES, 3))
)
# Least probability of "yes" and "no" together: below it, the model has answered something else.
MIN_MASS = 0.01
# Around a word in a token: white space, its marks in tokenizers, quotation marks, emphasis and stops.
_AROUND = " \t\n\r▁Ġ\"'“”‘’`*_.,:;!?()[]"


@dataclass
class JudgeConfig:
    """The vision-language model that judges texts; no model, no judge."""

    # openai:MODEL or hf:MODEL
    model: str = ""
    by: Literal["vqa", "rubric"] = "vqa"
    # asked of each text, in place of {text}
    question: str = ""
    system: str = ""
    # default: 4 for vqa, 64 for rubric; thinking models need more, or a setting that turns thinking off
    max_new_tokens: int = 0
    # further fields of an openai: request; null removes one
    extra: dict[str, Any] = field(default_factory=dict)
    # connection of openai: judges
    server: ServerConfig = field(default_factory=ServerConfig)
    # run the Python code of an hf: model
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        kind, _, name = self.model.partition(":")
        if not self.model:
            is_default = self.by == "vqa" and not (self.question or self.system or self.max_new_tokens or self.extra)
            if not is_default or self.server != ServerConfig():
                raise ValueError(
                    "--base-url and judge.* settings need a judge; give --judge openai:MODEL or --judge hf:MODEL."
                )
            return
        if kind not in ("openai", "hf") or not name:
            raise ValueError(f"judge must be openai:MODEL or hf:MODEL, not '{self.model}'.")
        if kind == "hf" and self.by == "rubric":
            raise ValueError("by rubric is for openai: judges; an hf: judge has probabilities, so use judge.by=vqa.")
        if kind == "hf" and (self.extra or self.server != ServerConfig()):
            raise ValueError(
                "--base-url, judge.server and judge.extra are for openai: judges; hf: judges send nothing."
            )
        self.question = self.question or (QUESTION if self.by == "vqa" else RUBRIC)
        if "{text}" not in self.question:
            raise ValueError("judge.question needs {text}, the place of the text.")
        if self.max_new_tokens < 0:
            raise ValueError(f"judge.max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        self.max_new_tokens = self.max_new_tokens or (4 if self.by == "vqa" else 64)

    @property
    def columns(self) -> tuple[str, ...]:
        """The score columns."""
        return (VQA,) if self.by == "vqa" else tuple(AXES)

    def format_question(self, text: str) -> str:
        """Return the question about a text."""
        return self.question.replace("{text}", " ".join(text.split()))

    def settings(self) -> dict[str, Any]:
        """Return what changes the scores, besides the model."""
        names = ("by", "question", "system", "max_new_tokens", "extra")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@dataclass(frozen=True)
class Judgement:
    """The scores of a text in the order of the columns, or the reason why there are none."""

    scores: tuple[float, ...] = ()
    error: str | None = None


def spells(token: str) -> Literal["yes", "no"] | None:
    """Return the answer that a token spells, in any case and with any punctuation."""
    word = token.strip(_AROUND).casefold()
    return word if word in ("yes", "no") else None  # type: ignore[return-value]  # mypy does not narrow by `in`


def read_yes_no(answer: Answer) -> Judgement:
    """Return VQAScore from the likeliest tokens of an answer, at its first place with a word.

    A spelling that is not among them counts as impossible.
    """
    if error := _find_error(answer):
        return Judgement(error=error)
    for top in answer.tops or ():
        if top and not max(top, key=lambda token: top[token]).strip(_AROUND):
            continue  # a blank or an opening quotation mark comes first
        mass = {"yes": 0.0, "no": 0.0}
        for token, logprob in top.items():
            if word := spells(token):
                mass[word] += math.exp(logprob)
        return yes_share(mass["yes"], mass["no"], answer.text)
    return Judgement(error="no_logprobs" if answer.tops is None else f"no_answer: {_excerpt(answer.text)}")


def yes_share(yes: float, no: float, text: str | None = None) -> Judgement:
    """Return VQAScore from the probabilities of "yes" and "no"; `text` is what the model has written."""
    if not yes + no >= MIN_MASS:
        return Judgement(error=f"no_answer: {_excerpt(text)}" if text else "no_answer")
    return Judgement((yes / (yes + no),))


def read_rubric(answer: Answer) -> Judgement:
    """Return the numbers of a rubric, strictly: a JSON object with every axis once, each a whole number from 1 to 5.

    A code fence around the object and reasoning before it are removed; nothing else is.
    """
    if error := _find_error(answer):
        return Judgement(error=error)
    text = re.sub(r"^.*</think(ing)?>", "", answer.text or "", flags=re.IGNORECASE | re.DOTALL).strip()
    if fenced := re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL):
        text = fenced[1]
    if (answer.finish or "").lower() in TOO_LONG:
        return Judgement(error=f"too_long: {_excerpt(text)}")
    try:
        pairs = json.loads(text, object_pairs_hook=lambda items: items)
    except (ValueError, RecursionError):
        return Judgement(error=f"malformed: {_excerpt(text)}")
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        return Judgement(error=f"malformed: {_excerpt(text)}")
    numbers = dict(pairs)
    is_whole = len(pairs) == len(numbers) == len(AXES) and numbers.keys() == AXES.keys()
    if not is_whole or not all(type(number) is int and 1 <= number <= 5 for number in numbers.values()):
        return Judgement(error=f"malformed: {_excerpt(text)}")
    return Judgement(tuple(float(numbers[name]) for name in AXES))


def _find_error(answer: Answer) -> str | None:
    """Return the error of an answer that no reader can use: refused or empty."""
    if answer.finish == "content_filter" or answer.refusal:
        return f"refused: {answer.refusal or 'content filter'}"[:MAX_MESSAGE]
    text = " ".join((answer.text or "").split())
    if is_refusal(text):
        return f"refused: {_excerpt(text)}"
    return None if text else "empty"


def _excerpt(text: str | None) -> str:
    return " ".join((text or "").split())[:200]
