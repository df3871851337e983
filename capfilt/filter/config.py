"""Settings of `capfilt filter`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from blipcore.checkpoints.numerics import Numerics
from blipcore.device import Backend, Dtype
from blipcore.io.storage import AnyPath, to_path
from capfilt.engine.run import EngineConfig
from capfilt.filter.decide import BestTexts
from capfilt.filter.judge import JudgeConfig
from capfilt.filter.labels import parse_target
from capfilt.filter.scorer import FilterSettings, FirstToken
from capfilt.filter.strata import LENGTH

# Scores whose thresholds are from 0 to 1, and 0.5 by default.
PROBABILITIES = ("itm", "itm_min", "itm_mean", "mix")


@dataclass(kw_only=True)
class ScoreConfig(EngineConfig):
    """Settings of scoring: pictures, texts and models."""

    # shard set with the pictures
    data: str
    # checkpoint with ITM and ITC heads; optional if `scores` names finished scores
    model: str | None = None
    # root of scores/ and filtered/; default: `data`
    out: str | None = None
    # "web" and names of captioners; empty means all
    sources: list[str] = field(default_factory=list)
    # open_clip:ARCH/TAG, one or several, scored as clip, clip2, ...
    clip: str | list[str] | None = None
    # lm:CAPTIONER, module:Class or file.py:Class of custom scorers, or further checkpoints with ITM and ITC heads
    scorer: str | list[str] | None = None
    # start of the texts of lm:CAPTIONER, as in its finetuning
    lm_prompt: str = "a picture of "
    # vision-language model that judges the texts, scored as vqa or by a rubric
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    # first token of the ITM text; "cls" reproduces the official demo class and Hugging Face
    first_token: FirstToken = "enc"
    # numbers of a Hugging Face BLIP whose config.json differs from the code that trained it
    numerics: Numerics = "official"
    # also score each sentence of the texts, which may be longer than the filter reads
    sentences: bool = False
    # store the filter's ITC vector of each picture and text beside the scores, half a kilobyte each
    vectors: bool = False
    # score new texts with stored vectors, by ITC alone and without a picture, see stored.py
    from_vectors: bool = False
    # image tokens that each layer of BLIP's image encoder merges: faster, not the same scores
    merge_tokens: int = 0
    # folder under scores/; default: existing scores that fit, otherwise a new folder
    scores: str | None = None
    # vocab.txt or tokenizer.json for a checkpoint without a tokenizer
    tokenizer: str | None = None
    # pictures per forward pass; default: 32 on a CPU, as many as fit on a GPU
    batch_size: int | None = None
    # auto: bf16 where the device supports it
    dtype: Dtype = "auto"
    # of BLIP's image encoder; auto: openvino on a CPU where it is installed, otherwise torch
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores is not None and not re.fullmatch(r"\w[\w.+-]*", self.scores):
            raise ValueError(f"scores must consist of letters, digits and . _ + -, not '{self.scores}'.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}.")
        if self.merge_tokens < 0:
            raise ValueError(f"merge_tokens is a number of tokens per layer, at least 0, not {self.merge_tokens}.")
        if self.model is None and self.scores is None:
            raise ValueError("Give a model to score with (--model), or finished scores (--scores).")

    @property
    def clips(self) -> list[str]:
        """The open_clip models, in column order."""
        return [self.clip] if isinstance(self.clip, str) else self.clip or []

    @property
    def scorers(self) -> list[str]:
        """The further scorers, in column order."""
        return [self.scorer] if isinstance(self.scorer, str) else self.scorer or []

    def filter_settings(self) -> FilterSettings:
        """Return the settings of filters with ITM and ITC heads."""
        return FilterSettings(self.first_token, self.tokenizer, self.numerics, self.vectors, self.merge_tokens)

    @property
    def root(self) -> AnyPath:
        """The folder that holds scores/ and filtered/."""
        return to_path(self.out or self.data)


@dataclass(kw_only=True)
class FilterConfig(ScoreConfig):
    """Settings of `capfilt filter`: scoring, and the choice of texts to keep."""

    # folder under filtered/
    name: str = "capfilt"
    # the deciding score, to which threshold, target and top_fraction apply; default: itm, with threshold auto mix
    score: str = ""
    # lowest deciding score of a kept text, 0.5 in the paper; auto: reaches `target` on `labels`
    threshold: float | Literal["auto"] = 0.5
    # file of labels, see labels.py; with them the score `mix` is learned
    labels: str | None = None
    # goal of threshold auto: precision=SHARE or recall=SHARE
    target: str = "precision=0.9"
    # instead of a threshold: share of the texts to keep, those with the highest score
    top_fraction: float | None = None
    # kinds of texts of which the same share each is kept: length or columns of scores, see strata.py
    strata: str | list[str] = field(default_factory=list)
    # lowest ITC cosine of a kept text
    itc_threshold: float | None = None
    # lowest CLIP cosine of a kept text
    clip_threshold: float | None = None
    # lowest values of other scores of a kept text, as {"sharpness": 0.2}
    min_scores: dict[str, float] = field(default_factory=dict)
    # most texts to keep per picture and source; 0 means all
    best: int = 0
    # score that ranks texts for `best`, default: the deciding score; alone it implies `best` = 1
    best_of: str | None = None
    # rank the texts of all sources together
    best_across: bool = False
    # drop the sentences of a text whose ITM is below the threshold, and keep the others; implies `sentences`
    repair: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name must consist of letters, digits and . _ + -, not '{self.name}'.")
        if self.judge.model and self.model is None:
            raise ValueError("A judge scores beside a filter: give its --model too.")
        self.score = self.score or ("mix" if self.threshold == "auto" else "itm")
        if isinstance(self.strata, str):
            self.strata = [part.strip() for part in self.strata.split(",") if part.strip()]
        if self.threshold != "auto" and self.score in PROBABILITIES and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a probability from 0 to 1, or auto, not {self.threshold}.")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction must be above 0 and at most 1, not {self.top_fraction}.")
        if self.top_fraction is not None and self.threshold != 0.5:
            raise ValueError("Give a threshold or a top fraction, not both.")
        if self.threshold == "auto" and self.labels is None:
            raise ValueError(
                "threshold auto needs labels: a file with key, source, index and match (1 or 0) for some texts."
            )
        if self.best_of is not None and not self.best_of.isidentifier():
            raise ValueError(f"best_of must be the name of a score, such as itm, itc or clip, not '{self.best_of}'.")
        for column, limit in self.min_scores.items():
            if not math.isfinite(limit):
                raise ValueError(f"min_scores.{column} must be a number, not {limit}.")
        for column in ("itm", "itc", "clip"):
            if column in self.min_scores and (column != "itm" or self.score == "itm"):
                setting = "threshold" if column == "itm" else f"{column}_threshold"
                raise ValueError(f"min_scores is for other scores than {column}; set {setting}.")
        self._check_scores()
        parse_target(self.target)
        if self.threshold != "auto" and self.target != FilterConfig.target:
            raise ValueError(f"target {self.target} is for threshold auto, and the threshold is {self.threshold}.")
        if self.repair:
            self._prepare_repair()

    @property
    def uses_mix(self) -> bool:
        """True if a setting names the score `mix`."""
        return "mix" in (self.score, self.best_of, *self.strata, *self.min_scores)

    def _check_scores(self) -> None:
        """Raise ValueError for a deciding score or strata that contradict other settings."""
        if not self.score.isidentifier():
            raise ValueError(f"score must be the name of a score, such as itm or mix, not '{self.score}'.")
        limited = {"itc": self.itc_threshold, "clip": self.clip_threshold} | self.min_scores
        if limited.get(self.score) is not None:
            raise ValueError(f"{self.score} is the deciding score; its limit is the threshold, so give no other one.")
        if self.score not in PROBABILITIES and self.threshold == 0.5 and self.top_fraction is None:
            raise ValueError(f"0.5 is a threshold for ITM; give --threshold or --top-fraction for {self.score}.")
        if len(set(self.strata)) < len(self.strata):
            raise ValueError(f"strata {', '.join(self.strata)} names a number twice; name each once.")
        if "source" in self.strata:
            raise ValueError("Strata are made within each source, so name numbers alone, such as length.")

    def _prepare_repair(self) -> None:
        """Set what `repair` implies; ValueError for settings that need the ITM of whole texts."""
        if self.threshold == "auto" or self.top_fraction is not None or self.labels is not None:
            raise ValueError(
                "repair judges sentences by a number as threshold; labels, top_fraction and threshold auto are for "
                "whole texts."
            )
        if self.strata:
            raise ValueError("repair has one limit for the sentences of all texts; leave out strata.")
        if "itm_min" in self.min_scores:
            raise ValueError("With repair the threshold is the lowest itm_min; set threshold instead of min_scores.")
        if self.score not in ("itm", "itm_min"):
            raise ValueError(f"repair decides by the ITM of sentences, not by {self.score}; leave out one of the two.")
        self.sentences, self.score = True, "itm_min"

    def best_texts(self) -> BestTexts:
        """Return the limit on the kept texts per picture."""
        if self.best_of is None and not self.best:
            return BestTexts()
        return BestTexts(self.best or 1, self.best_of or self.score, self.best_across)

    def limits(self, threshold: float) -> dict[str, float]:
        """Return score column -> lowest value of a kept text."""
        limits = {self.score: threshold, "itc": self.itc_threshold, "clip": self.clip_threshold}
        limits |= {self.score: threshold}
        return {column: limit for column, limit in limits.items() if limit is not None} | self.min_scores

    def required_columns(self) -> dict[str, str]:
        """Return required score column -> the setting that needs it."""
        required = dict.fromkeys(self.min_scores, "min_scores")
        required |= {name: "strata" for name in self.strata if name != LENGTH}
        if self.score != "itm":
            required[self.score] = "score"
        if self.repair:
            required["itm_min"] = "repair"
        if self.best_texts().number:
            required[self.best_texts().score] = "best_of"
        if self.clip_threshold is not None:
            required["clip"] = "clip_threshold"
        # made from the other scores
        required.pop("mix", None)
        if self.uses_mix and self.labels is None:
            required["confidence"] = "mix without labels"
        return required
