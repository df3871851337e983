"""A picture and its texts in, one number a text and column out: the `Scorer` protocol, and which scorers there are.

    itm    probability that picture and text match, softmax of BLIP's ITM head; the paper keeps a text at 0.5 or more
    itc    cosine of BLIP's image and text features, -1 to 1; not a probability
    clip   cosine of an open_clip model's features, -1 to 1; of further ones clip2, clip3, ...

Higher is better in every column. A picture is encoded once for all of its texts. `capfilt filter` knows the protocol
alone, and loads no model where the scores are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

FirstToken = Literal["enc", "cls"]
BLIP_COLUMNS = ("itm", "itc")
ROWS = 128  # (picture, text) pairs a forward pass: their copies of the pictures' keys and values take the memory


class Scorer(Protocol):
    """Judges texts of pictures; the score of a pair must not depend on the other pairs of the call."""

    name: str
    fingerprint: str  # changes when the scores would
    columns: tuple[str, ...]

    def prepare(self, image: Image.Image) -> Any:
        """What `score` needs of an RGB picture; called from reading threads, ahead of the model."""

    def score(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """column -> for each prepared picture the scores of its texts, texts as they came from the web."""


def by_picture(scores: list[float], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Scores of all texts, one after the other -> the scores of each picture's texts."""
    rest = iter(scores)
    return [[next(rest) for _ in of_picture] for of_picture in texts]


def clip_columns(number: int) -> list[str]:
    """Names of the columns of so many open_clip models."""
    return [f"clip{place or ''}" for place in (0, *range(2, number + 1))][:number]


def open_clip_fingerprint(spec: str) -> str:
    """Architecture and tag, or architecture and digest of a local checkpoint; loads no model."""
    arch, tag = parse_open_clip(spec)
    if not Path(tag).is_file():
        return f"{arch}/{tag}"
    with open(tag, "rb") as file:
        return f"{arch}/{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def parse_open_clip(spec: str) -> tuple[str, str]:
    """Architecture, and tag or path of a checkpoint."""
    kind, _, rest = spec.partition(":")
    arch, _, tag = rest.partition("/")
    if kind != "open_clip" or not (arch and tag):
        raise ValueError(f"'{spec}' is not a CLIP model; write open_clip:ARCH/TAG, such as open_clip:ViT-B-32/openai.")
    return arch, tag
