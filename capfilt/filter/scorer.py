"""The base class of scorers, which give each text of a picture one number per score column.

    itm    probability that picture and text match: softmax of the ITM head; the paper keeps texts at 0.5 or more
    itc    cosine of image and text features, -1 to 1; not a probability
    clip   cosine of an open_clip model's features, -1 to 1

Higher is better in every column. If several scorers have a column of the same name, the later ones are numbered: clip2,
clip3, ... This file and the constructors of scorers import no torch, so existing scores are reused without it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from blipcore.checkpoints.numerics import Numerics
from blipcore.device import Backend

FirstToken = Literal["enc", "cls"]
# (picture, text) pairs per forward pass; each has a copy of its picture's keys and values in memory.
PAIRS_PER_PASS = 128


class Runtime(NamedTuple):
    """Settings of a running model: device ("cpu", "cuda:0"), number format, backend of BLIP's image encoder."""

    device: str = "cpu"
    dtype: Literal["bf16", "fp32"] = "fp32"
    backend: Backend = "torch"


@dataclass(frozen=True)
class FilterSettings:
    """Settings of filters with ITM and ITC heads; each uses those that apply to it."""

    first_token: FirstToken = "enc"
    # vocab.txt or tokenizer.json for a checkpoint without a tokenizer
    tokenizer: str | None = None
    numerics: Numerics = "official"
    # also return the ITC vectors, see vectors.py
    vectors: bool = False
    # image tokens that each layer of BLIP's image encoder merges
    merge_tokens: int = 0


class Scorer:
    """Scores texts of pictures. A subclass sets `columns` and implements `score`; the rest has defaults.

    The score of a pair must not depend on the other pairs of a call.
    """

    # start of the name of a folder of scores
    name: str = "scorer"
    # names of the scores, in the order of the table
    columns: tuple[str, ...] = ()
    # Settings that change the scores and are not part of the fingerprint; the manifest records them.
    settings: Mapping[str, Any] = {}
    # names of results that are no numbers; the tables hold them after the scores
    list_columns: tuple[str, ...] = ()
    # its image encoder may run through `runtime.backend`
    uses_backend: bool = False
    # Python packages whose versions the manifest records
    packages: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A string that changes whenever the scores would change. Default: a digest of the scorer's source file."""
        return hashlib.sha256(Path(inspect.getfile(type(self))).read_bytes()).hexdigest()[:16]

    def load(self, runtime: Runtime) -> None:
        """Load the model, in each worker and before any other method. Default: nothing."""

    def prepare(self, image: Image.Image, /) -> Any:
        """Return the input of `score` for an RGB image. Decoding threads call it, ahead of the model."""
        return image

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether the model reads only its start. Default: it reads all texts whole."""
        return [False] * len(texts)

    def score(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> Mapping[str, Sequence[Sequence[float]]]:
        """Return column -> a list of scores per picture; `texts` are the uncleaned texts of each picture."""
        raise NotImplementedError


def group_by_picture(scores: list[float], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Split a flat list of scores into one list per picture, as `texts` is split."""
    remaining = iter(scores)
    return [[next(remaining) for _ in picture_texts] for picture_texts in texts]


def picture_of_each_text(texts: Sequence[Sequence[str]]) -> list[int]:
    """Return the index of the picture of each text, in one flat list."""
    return [index for index, picture_texts in enumerate(texts) for _ in picture_texts]
