"""A body of any kind is an answer, or an error that says why not; none is read without a bound."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from capfilt.caption.server import to_caption
from capfilt.vlm.answer import Answer, UnusableAnswerError, clean_message, parse_completion, read_body


def completion(**choice: Any) -> bytes:
    return json.dumps({"model": "m", "choices": [{"message": {"content": "a dog"}} | choice]}).encode()


def test_a_completion_has_text_finish_and_logprob() -> None:
    tokens = [{"token": "a", "logprob": -0.5}, {"token": "dog", "logprob": -1}]
    answer, model, usage = parse_completion(completion(finish_reason="stop", logprobs={"content": tokens}))
    assert (answer, model, usage) == (Answer("a dog", None, "stop", -1.5), "m", None)
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
    assert to_caption(answer, 10).text == "a dog" and to_caption(answer._replace(finish="length"), 10).text is None
    assert to_caption(answer._replace(finish="MAX_TOKENS"), 10).error == "too_long: a dog"
    assert to_caption(answer._replace(text="x" * 641), 10).error.startswith("too_long")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"null", b"[]", b'"text"', b"{}", b'{"choices": {}}', b'{"choices": [[]]}', b"NaN",
        b'{"choices": [{"message": "a dog"}]}', b'{"choices": [{"message": {"content": {"text": 1}}}]}',
        b'{"choices": [{"message": {"content": "a"}, "finish_reason": ["stop"]}]}', b"[" * 5000, b'{"a":' * 5000,
        b"9" * 5000, completion()[:-1], completion(finish_reason="abort"), completion(finish_reason="error"),
        completion(message={"content": "\ud83d"}), completion(message={"content": "\0"}),
    ],
)  # fmt: skip
def test_other_bodies_are_unusable(body: bytes) -> None:
    with pytest.raises(UnusableAnswerError) as caught:
        parse_completion(body)
    clean_message(str(caught.value)).encode()


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, [], {"content": None}, {"content": "x"}, {"content": [1]}, {"content": [{"logprob": True}]},
     {"content": [{"logprob": float("nan")}, {"logprob": -1}]}, {"content": [{"logprob": -1e308}] * 9}],
)  # fmt: skip
def test_logprobs_that_are_none_are_null(logprobs: Any) -> None:
    answer, _, _ = parse_completion(completion(logprobs=logprobs))
    assert answer.text == "a dog" and answer.logprob is None


def place(**top: float) -> dict[str, Any]:
    return {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": t, "logprob": v} for t, v in top.items()]}


def test_the_likeliest_tokens_of_the_first_places_are_kept() -> None:
    logprobs = {
        "content": [place(Yes=-0.1, No=-2), place(**{"\x00": -1, "x": 3.0, ".": -1}), {"token": "b"}, place(z=-1)]
    }
    answer, _, _ = parse_completion(completion(logprobs=logprobs))
    assert answer.tops == [{"Yes": -0.1, "No": -2.0}, {".": -1.0}]
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
    answer, _, _ = parse_completion(completion(logprobs={"content": [place(a=-1)] * 99}))
    assert len(answer.tops or ()) == 8
    assert parse_completion(completion(logprobs={"content": [place(a=float("nan"))]})).answer.tops is None
    assert "tops" not in parse_completion(completion()).answer.to_dict()
    for damaged in ([1], {"a": 1}, [{"a": "b"}], [{"a": 5.0}]):
        assert Answer.from_dict({"text": "a", "tops": damaged}).tops is None


@pytest.mark.parametrize(("usage", "expected"), [
    ({"prompt_tokens": 7, "completion_tokens": 2}, (7, 2)), (None, None), ({"prompt_tokens": 7}, None), ([7, 2], None),
    ({"prompt_tokens": -7, "completion_tokens": 2}, None), ({"prompt_tokens": True, "completion_tokens": 2}, None),
    ({"prompt_tokens": 7.5, "completion_tokens": 2}, None), ({"prompt_tokens": 10**30, "completion_tokens": 2}, None),
])  # fmt: skip
def test_the_tokens_of_an_answer_are_those_that_the_server_reports(usage: Any, expected: Any) -> None:
    body = json.loads(completion()) | {"usage": usage}
    assert parse_completion(json.dumps(body).encode()).usage == expected


def read(body: bytes, encoding: str = "", limit: int = 1000) -> bytes | None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    return asyncio.run(read_body(chunks(), encoding, limit))


def test_a_body_is_read_up_to_the_limit() -> None:
    text = b"word " * 200
    assert read(text) == read(gzip.compress(text), "gzip") == read(zlib.compress(text), "Deflate") == text
    assert read(text + b".") is None and read(gzip.compress(text + b"."), "gzip") is None
    assert read(gzip.compress(bytes(1 << 24)), "gzip") is None
    for encoding in ("br", "zstd", "gzip, gzip"):
        with pytest.raises(UnusableAnswerError, match="compressed as"):
            read(text, encoding)
    with pytest.raises(UnusableAnswerError, match="not compressed as"):
        read(text, "gzip")


def test_messages_are_one_short_line_that_a_table_can_hold() -> None:
    assert clean_message("a\n b\t\ud83d\0\x1b[2J") == "a b \ufffd\ufffd\ufffd[2J"
    assert len(clean_message("x" * 100_000)) == 500 and clean_message(b"\xff") == "\ufffd"
