"""Reads and checks the answers of a chat server."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from capfilt.caption.captioner import Caption
from capfilt.caption.chat import parse_answer

MAX_MESSAGE = 500  # characters of a server's message
MAX_BODY = 1 << 20  # bytes of an answer, besides those of its log-probabilities
MAX_BODY_PER_TOKEN = 2 << 10
# Ends of an answer that the server has cut short, by its length or by a failure.
TOO_LONG, BROKEN = ("length", "max_tokens"), ("abort", "error")
MAX_CHARACTERS_PER_TOKEN = 64  # of an answer; a longer one ignores max_new_tokens
# Characters that no table or terminal should get: control characters except white space, and halves of surrogate pairs.
UNUSABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


class UnusableAnswerError(ValueError):
    """An answer that is no chat completion; the message says why."""


class Answer(NamedTuple):
    """The parts of a chat completion that matter, as they are cached."""

    text: str | None
    refusal: str | None
    finish: str | None
    # sum over the tokens; None if the server gives none, or none that are numbers
    logprob: float | None

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
        return cls(**fields, logprob=_valid_logprob(content.get("logprob")))

    def to_caption(self, max_new_tokens: int) -> Caption:
        """Return the caption, or the reason why there is none."""
        if self.finish == "content_filter" or self.refusal:
            return Caption(None, None, f"refused: {self.refusal or 'content filter'}"[:MAX_MESSAGE])
        is_cut = (self.finish or "").lower() in TOO_LONG
        is_endless = len(self.text or "") > MAX_CHARACTERS_PER_TOKEN * max_new_tokens
        return parse_answer(self.text, not (is_cut or is_endless), self.logprob)


def parse_completion(body: bytes) -> tuple[Answer, str]:
    """Return the answer in the body of a chat completion, and the name of the model that gave it, "" if it has none.

    Raises UnusableAnswerError for everything else.
    """
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
    }
    model = content.get("model")
    return Answer.from_dict(fields), clean_message(model) if isinstance(model, str) else ""


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


def _valid_logprob(value: Any) -> float | None:
    """Return a log-probability; None for everything that is none, such as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value <= 1e-6 else None
