"""The `Scorer` protocol and the names of the score columns.

    itm    probability that picture and text match: softmax of BLIP's ITM head; the paper keeps texts at 0.5 or more
    itc    cosine of BLIP's image and text features, -1 to 1; not a probability
    clip   cosine of an open_clip model's features, -1 to 1; further models give clip2, clip3, ...

Higher is better in every column. This file imports no model, so existing scores are reused without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

FirstToken = Literal["enc", "cls"]
BLIP_COLUMNS = ("itm", "itc")
# (picture, text) pairs per forward pass; each has a copy of its picture's keys and values in memory.
PAIRS_PER_PASS = 128


class Scorer(Protocol):
    """Scores texts of pictures. The score of a pair must not depend on the other pairs of the call."""

    name: str
    # changes whenever the scores would change
    fingerprint: str
    columns: tuple[str, ...]

    def prepare(self, image: Image.Image, /) -> Any:
        """Return the input of `score` for an RGB image. Decoding threads call it, ahead of the model."""

    def score(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Return column -> a list of scores per picture; `texts` are the uncleaned texts of each picture."""


def group_by_picture(scores: list[float], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Split a flat list of scores into one list per picture, as `texts` is split."""
    remaining = iter(scores)
    return [[next(remaining) for _ in picture_texts] for picture_texts in texts]


def clip_columns(number: int) -> list[str]:
    """Return the columns of a number of open_clip models: clip, clip2, clip3, ..."""
    return ["clip" if position == 1 else f"clip{position}" for position in range(1, number + 1)]


def open_clip_fingerprint(spec: str) -> str:
    """Return ARCH/TAG, or ARCH/DIGEST for a local checkpoint; load no model."""
    arch, tag = parse_open_clip(spec)
    if not Path(tag).is_file():
        return f"{arch}/{tag}"
    with open(tag, "rb") as file:
        return f"{arch}/{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def parse_open_clip(spec: str) -> tuple[str, str]:
    """Parse `open_clip:ARCH/TAG` into architecture and tag."""
    kind, _, name = spec.partition(":")
    arch, _, tag = name.partition("/")
    if kind != "open_clip" or not (arch and tag):
        raise ValueError(f"'{spec}' is not a CLIP model; write open_clip:ARCH/TAG, such as open_clip:ViT-B-32/openai.")
    return arch, tag
