"""Settings of `capfilt filter`: how to score and how to decide."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from blipcore.device import Backend, Dtype
from blipcore.io.storage import AnyPath, to_path
from capfilt.engine import run as engine
from capfilt.filter.decide import Best
from capfilt.filter.labels import parse_target
from capfilt.filter.scorer import FirstToken


@dataclass(kw_only=True)
class ScoreConfig(engine.EngineConfig):
    """Which texts of which pictures to score, and with what."""

    data: str  # shard set with the pictures
    model: str | None = None  # checkpoint with ITM and ITC heads; not needed where `scores` are finished
    out: str | None = None  # root of scores/ and filtered/ when the pictures' folder is not to be written to
    sources: list[str] = field(default_factory=list)  # "web" and captioners' names; empty is all there are
    clip: str | list[str] | None = None  # also score with open_clip:ARCH/TAG; several give clip, clip2, ...
    first_token: FirstToken = "enc"  # "cls" for the numbers of the official demo class and of Hugging Face
    scores: str | None = None  # folder under scores/; by default one that fits is used again, or a new one named
    tokenizer: str | None = None  # vocab.txt or tokenizer.json for a checkpoint that carries none
    batch_size: int | None = None  # pictures a forward pass; 32 on a CPU, what fits on a GPU
    dtype: Dtype = "auto"  # bf16 where the device supports it; fp32 for parity
    backend: Backend = "auto"  # of the image encoder: openvino on a CPU that has it, else torch; or another

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores is not None and not re.fullmatch(r"\w[\w.+-]*", self.scores):
            raise ValueError(f"scores '{self.scores}' must be letters, digits, . _ + or -.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}.")
        if self.model is None and self.scores is None:
            raise ValueError("Give a model to score with, or the name of finished scores.")

    @property
    def clips(self) -> list[str]:
        """The open_clip models, in the order of their columns."""
        return [self.clip] if isinstance(self.clip, str) else self.clip or []

    @property
    def root(self) -> AnyPath:
        """Where this work is written."""
        return to_path(self.out or self.data)


@dataclass(kw_only=True)
class FilterConfig(ScoreConfig):
    """Which texts to judge, with which model, and what to keep."""

    name: str = "capfilt"  # of the folder under filtered/
    # least ITM probability, 0.5 in the paper; 0 keeps every text there is, auto reaches the target on the labels
    threshold: float | Literal["auto"] = 0.5
    labels: str | None = None  # CSV, JSON lines or Parquet with key, source, index, match
    target: str = "precision=0.9"  # or recall=SHARE, of auto
    top_fraction: float | None = None  # instead of a threshold: this share of the texts, those with the highest ITM
    itc_threshold: float | None = None  # least ITC cosine
    clip_threshold: float | None = None  # least CLIP cosine
    best: int = 0  # at most so many texts of a source for a picture, the best; 0 is all
    best_of: str | None = None  # the score that says which are best, ITM unless given; alone it keeps one
    best_across: bool = False  # the best of all sources together, not of each

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name '{self.name}' must be letters, digits, . _ + or -.")
        if self.threshold != "auto" and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a probability, 0 to 1, or auto, not {self.threshold}.")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction is a share above 0 and up to 1, not {self.top_fraction}.")
        if self.top_fraction is not None and self.threshold != 0.5:
            raise ValueError("Give a threshold or a top fraction, not both.")
        if self.threshold == "auto" and self.labels is None:
            raise ValueError(
                "threshold auto needs labels: a file with key, source, index and match (1 or 0) of some texts."
            )
        if self.best_of is not None and not re.fullmatch(r"itm|itc|clip\d*", self.best_of):
            raise ValueError(f"best_of is a score: itm, itc, clip, or clip2 of a second --clip, not '{self.best_of}'.")
        parse_target(self.target)

    def choice(self) -> Best:
        """Which of a picture's texts may stay."""
        if self.best_of is None and not self.best:
            return Best()
        return Best(self.best or 1, self.best_of or "itm", self.best_across)

    def limits(self, threshold: float) -> dict[str, float]:
        """Score column -> the least value that keeps a text."""
        given = {"itm": threshold, "itc": self.itc_threshold, "clip": self.clip_threshold}
        return {column: least for column, least in given.items() if least is not None}

    def decides_by(self) -> dict[str, str]:
        """Score column -> the setting that asks for it."""
        best = self.choice()
        by_best = {best.by: "best_of"} if best.number else {}
        return by_best | ({} if self.clip_threshold is None else {"clip": "clip_threshold"})
