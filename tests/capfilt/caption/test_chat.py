"""Answers of vision-language models, and the settings of their requests."""

from __future__ import annotations

from typing import Any

import pytest

from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig, parse_answer


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ('  "A dog\n on a couch." ', "A dog on a couch."),
        ("I’m sorry, but I can’t help with that.", "refused"),
        ("I'm unable to view images.", "refused"),
        ("Unfortunately, I cannot describe people.", "refused"),
        ("As an AI language model, I", "refused"),
        ("Sorry we are closed, says the sign.", "Sorry we are closed, says the sign."),
        ("I can see a dog.", "I can see a dog."),
        ("", "empty"),
        (None, "empty"),
    ],
)
def test_an_answer_is_a_caption_or_an_error(answer: str | None, outcome: str) -> None:
    caption = parse_answer(answer, True, -1.0)
    if caption.error is None:
        assert (caption.text, caption.logprob) == (outcome, -1.0)
    else:
        assert (caption.text, caption.logprob, caption.error.partition(":")[0]) == (None, None, outcome)


def test_an_answer_that_was_cut_short_is_too_long() -> None:
    assert parse_answer("and so on", False, -1.0).error == "too_long: and so on"
    assert parse_answer("<think>The picture shows", True, -1.0).error == "too_long: <think>The picture shows"


@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nA dog?\n</think>\n\nA cat.",
        "I see a dog. </think> A cat.",
        "◁think▷A dog?◁/think▷A cat.",
        "<think>A dog?</think><answer>A cat.</answer>",
    ],
)
def test_the_reasoning_of_a_thinking_model_is_no_part_of_its_caption(answer: str) -> None:
    assert parse_answer(answer, True, -9.0) == Caption("A cat.", None)
    assert (parse_answer("<think>A dog?</think>", True, -9.0).error) == "empty"


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0}, {"temperature": 0}, {"num_captions": 0}, {"mode": "greedy", "num_captions": 2}, {"mode": "beam"}],
)
def test_settings_out_of_range_raise(settings: dict[str, Any]) -> None:
    message = r"chat\.top_p must be in|Greedy decoding gives one caption|beam search is for BLIP"
    with pytest.raises(ValueError, match=message):
        ChatConfig(**settings)
