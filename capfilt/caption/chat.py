"""Prompt, decoding settings and answers of vision-language models, `hf:` and `openai:`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from capfilt.caption.captioner import Caption
from capfilt.vlm.answer import is_refusal

# What thinking models write before their answer, up to its end; some prompts already hold the beginning.
REASONING = re.compile(r".*(</think(ing)?>|◁/think▷)", re.IGNORECASE)
UNFINISHED_REASONING = re.compile(r"(<think(ing)?>|◁think▷)", re.IGNORECASE)


@dataclass
class ChatConfig:
    """Prompt and decoding of a vision-language model, by default from the paper's nucleus."""

    # used unchanged if the model has no chat template
    prompt: str = "Describe this image in one sentence."
    system: str = ""
    # not all of these models have beam search
    mode: Literal["nucleus", "greedy"] = "nucleus"
    # a longer answer has the error too_long
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 0.9
    num_captions: int = 1
    seed: int = 0
    # further fields of an openai: request; null removes one
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("nucleus", "greedy"):
            raise ValueError(f"chat.mode must be nucleus or greedy, not '{self.mode}'; beam search is for BLIP.")
        if not 0 < self.top_p <= 1 or self.temperature <= 0 or self.max_new_tokens < 1 or self.num_captions < 1:
            raise ValueError(
                "chat.top_p must be in (0, 1], temperature above 0, max_new_tokens and num_captions at least 1."
            )
        if self.mode == "greedy" and self.num_captions > 1:
            raise ValueError("Greedy decoding gives one caption per picture; use chat.mode=nucleus for more.")


def parse_answer(text: str | None, complete: bool, logprob: float | None) -> Caption:
    """Return the caption in an answer, on one line and without reasoning and surrounding quotation marks.

    An answer without a caption has the error `refused`, `too_long` (not `complete`) or `empty`. After reasoning, the
    log-probability is None: that of the whole answer is not that of the caption.
    """
    text = " ".join((text or "").split())
    if reasoning := REASONING.match(text):
        text, logprob = text[reasoning.end() :].strip().removeprefix("<answer>").removesuffix("</answer>").strip(), None
    elif UNFINISHED_REASONING.match(text):
        complete = False
    for opening, closing in ('""', "''", "“”", "‘’"):
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            text = text[1:-1].strip()
    if is_refusal(text):
        return Caption(None, None, f"refused: {text[:200]}")
    if not complete:
        return Caption(None, None, f"too_long: {text[:200]}")
    return Caption(text, logprob) if text else Caption(None, None, "empty")
