"""How a vision-language model is asked for captions, and what its answers are taken for: for `hf:` and `openai:`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

REFUSALS = re.compile(
    r"((i['’]?m |i am |we are )?(very |so |really )?(sorry|apologi[sz]e)[,.]? (but )?|unfortunately,? )?"
    r"(i|we)( can['’]?t| cannot| won['’]?t|['’]m (un|not )able| (am|are) (un|not )able)\b"
    r"|as an ai\b",
    re.IGNORECASE,
)


@dataclass
class ChatConfig:
    """What to say to a vision-language model, and how it answers; the nucleus is the paper's."""

    prompt: str = "Describe this image in one sentence."  # as it is, where the model has no chat template
    system: str = ""
    mode: Literal["nucleus", "beam", "greedy"] = "nucleus"  # beams are BLIP's alone
    max_new_tokens: int = 64  # an answer that is longer is no caption: its outcome is too_long
    temperature: float = 1.0
    top_p: float = 0.9
    num_captions: int = 1
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # openai: more fields of a request; null takes one out

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1 or self.temperature <= 0 or self.max_new_tokens < 1 or self.num_captions < 1:
            raise ValueError("top_p is in (0, 1], temperature above 0, max_new_tokens and num_captions are at least 1.")
        if self.mode == "greedy" and self.num_captions > 1:
            raise ValueError("greedy decoding knows one caption a picture: sample for more.")

    def require_no_beams(self) -> None:
        """ValueError for a mode that these models do not offer in common."""
        if self.mode == "beam":
            raise ValueError("Beam search is for BLIP captioners; with hf: and openai: use nucleus or greedy.")


class Caption(NamedTuple):
    """A caption, or why there is none."""

    text: str | None
    logprob: float | None  # null where the model does not tell
    error: str | None = None  # an outcome, and behind ": " what was said about it; exactly when there is no text


def read_answer(text: str | None, complete: bool, logprob: float | None) -> Caption:
    """The caption in an answer: on one line, without quotation marks around it.

    Outcomes: `refused`, `too_long` (it was cut short), `empty`.
    """
    text = " ".join((text or "").split())
    for opening, closing in ('""', "''", "“”", "‘’"):
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            text = text[1:-1].strip()
    if REFUSALS.match(text):
        return Caption(None, None, f"refused: {text[:200]}")
    if not complete:
        return Caption(None, None, f"too_long: {text[:200]}")
    return Caption(text, logprob) if text else Caption(None, None, "empty")
