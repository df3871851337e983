"""Reads and checks the answers of a chat server."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

MAX_MESSAGE = 500  # characters of a server's message
MAX_BODY = 1 << 20  # bytes of an answer, besides those of its log-probabilities
MAX_BODY_PER_TOKEN = 2 << 10
# Ends of an answer that the server has cut short, by its length or by a failure.
TOO_LONG, BROKEN = ("length", "max_tokens"), ("abort", "error")
MAX_TOPS = 8  # positions with alternatives
MAX_CHARACTERS_PER_TOKEN = 64  # of an answer; a longer one ignores max_new_tokens
# Characters that no table or terminal should get: control characters except white space, and halves of surrogate pairs.
UNUSABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")

REFUSALS = re.compile(
    r"((i['’]?m |i am |we are )?(very |so |really )?(sorry|apologi[sz]e)[,.]? (but )?|unfortunately,? )?"
    r"(i|we)( can['’]?t| cannot| won['’]?t|['’]m (un|not )able| (am|are) (un|not )able)\b"
    r"|as an ai\b",
    re.IGNORECASE,
)


class UnusableAnswerError(ValueError):
    """An answer that is no chat completion; the message says why."""


class Answer(NamedTuple):
    """The parts of a chat completion that matter, as they are cached."""

    text: str | None
    refusal: str | None
    finish: str | None
    # sum over the tokens; None if the server gives none, or none that are numbers
    logprob: float | None
    # likeliest tokens with their log-probabilities, at each of the first positions; None without any
    tops: list[dict[str, float]] | None = None

    @classmethod
    def from_dict(cls, content: Any) -> Answer:
        """Return the answer in a row of the cache; UnusableAnswerError if it is none."""
        if not isinstance(content, dict):
            raise UnusableAnswerError("no JSON object")
        fields = {}
        for name in ("text", "refusal", "finish"):
            value = fields[name] = content.get(name)
            if not isinstance(value, str | None):
                raise UnusableAnswerError(f"{name} is a {type(value).__name__}, not a string")
            if value and (character := UNUSABLE.search(value)):
                raise UnusableAnswerError(f"{name} has the unusable character U+{ord(character[0]):04X}")
        if (fields["finish"] or "").lower() in BROKEN:
            raise UnusableAnswerError(f"the answer is not whole (finish_reason {fields['finish']})")
        return cls(**fields, logprob=_valid_logprob(content.get("logprob")), tops=_valid_tops(content.get("tops")))

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the cache; without `tops`, as earlier versions wrote it."""
        return {name: value for name, value in self._asdict().items() if name != "tops" or value is not None}


class Completion(NamedTuple):
    """A chat completion: the answer, the model that gave it ("" if unnamed), the tokens of request and answer."""

    answer: Answer
    model: str
    usage: tuple[int, int] | None


def parse_completion(body: bytes) -> Completion:
    """Return the answer in the body of a chat completion; UnusableAnswerError for everything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):  # also integers of thousands of digits, and deep nesting
        raise UnusableAnswerError(f"no JSON: {clean_message(body[:4000])}") from None
    choices = content.get("choices") if isinstance(content, dict) else None
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise UnusableAnswerError(f"no message of a first choice: {clean_message(body[:4000])}")
    fields = {
        "text": message.get("content"),
        "refusal": message.get("refusal"),
        "finish": choice.get("finish_reason"),
        "logprob": _sum_logprobs(choice.get("logprobs")),
        "tops": _read_tops(choice.get("logprobs")),
    }
    model = content.get("model")
    name = clean_message(model) if isinstance(model, str) else ""
    return Completion(Answer.from_dict(fields), name, _read_usage(content.get("usage")))


async def read_body(chunks: AsyncIterator[bytes], encoding: str, limit: int) -> bytes | None:
    """Return the body of a response from its raw chunks, or None if it is longer than `limit`, compressed or not.

    Raises UnusableAnswerError for a compression other than gzip and deflate, or broken data.
    """
    if encoding.strip().lower() not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise UnusableAnswerError(f"the body is compressed as '{encoding[:40]}', which was not asked for")
    # 47: zlib and gzip headers are recognised
    unpack = zlib.decompressobj(47) if encoding.strip().lower() not in ("", "identity") else None
    body, received = bytearray(), 0
    async for chunk in chunks:
        received += len(chunk)
        try:
            body += unpack.decompress(chunk, limit + 1 - len(body)) if unpack else chunk
        except zlib.error:
            raise UnusableAnswerError("the body is not compressed as its header says") from None
        if received > limit or len(body) > limit:
            return None
    return bytes(body)


def clean_message(text: str | bytes) -> str:
    """Return a server's message on one line, shortened, without unusable characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return UNUSABLE.sub("\ufffd", " ".join(text[: 8 * MAX_MESSAGE].split()))[:MAX_MESSAGE]


def _sum_logprobs(logprobs: Any) -> float | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    values = [_valid_logprob(token.get("logprob")) if isinstance(token, dict) else None for token in tokens]
    return None if None in values else _valid_logprob(sum(value for value in values if value is not None))


def is_refusal(text: str) -> bool:
    """Return whether an answer begins as refusals do."""
    return REFUSALS.match(text) is not None


def _read_tops(logprobs: Any) -> Any:
    """Return the likeliest tokens at each of the first positions of an answer; None if a server gives none."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list):
        return None
    tops = []
    for token_entry in tokens[:MAX_TOPS]:
        listed = token_entry.get("top_logprobs") if isinstance(token_entry, dict) else None
        if not isinstance(listed, list) or not listed:
            break
        pairs = [(item.get("token"), item.get("logprob")) for item in listed if isinstance(item, dict)]
        # two tokens may have one spelling, as halves of a character do
        top: dict[str, float] = {}
        for token, logprob in pairs:
            value = _valid_logprob(logprob)
            if isinstance(token, str) and value is not None and not UNUSABLE.search(token):
                top[token] = max(value, top.get(token, value))
        if not top:
            break
        tops.append(top)
    return tops or None


def _valid_tops(tops: Any) -> list[dict[str, float]] | None:
    if not isinstance(tops, list) or not all(isinstance(top, dict) for top in tops):
        return None
    return tops if all(_valid_logprob(value) is not None for top in tops for value in top.values()) else None


def _read_usage(usage: Any) -> tuple[int, int] | None:
    names = ("prompt_tokens", "completion_tokens")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in names]
    tokens = [count for count in counts if type(count) is int and 0 <= count < 1 << 40]
    return (tokens[0], tokens[1]) if len(tokens) == 2 else None


def _valid_logprob(value: Any) -> float | None:
    """Return a log-probability; None for everything that is none, such as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value <= 1e-6 else None
