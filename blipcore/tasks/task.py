"""What the trainer asks of an objective. A Task owns the model and the losses; the trainer owns loop and optimiser."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption

Batch = dict[str, Any]
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """Where the run is: `step` optimiser steps are done of `steps`."""

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        return self.step / max(self.steps, 1)


class Task(nn.Module, ABC):
    """A model and what it is to learn, by a `config` of the task's own.

    A step of the trainer is: `before_step` once, `forward` for each micro-batch, optimiser, `after_step` once with
    the outputs of all micro-batches. `forward` has no side effects: EMA and queues move in the other two.
    """

    collate: Callable[[list[dict[str, Any]]], Batch]  # picklable

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: Any) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        """`loss` is what to differentiate, `loss_*` its parts; other tensors are for `after_step`."""

    def take_up(self, left: Mapping[str, Tensor]) -> None:
        """Go on with what the checkpoint that `model` is from was left with beside it; here nothing."""

    def before_step(self, progress: Progress) -> None:
        """Momentum update and the like, before the forward passes of a step; here nothing."""

    def after_step(self, outputs: list[Outputs]) -> None:
        """Queue update and the like, after the optimiser; here nothing."""


@dataclass
class Collate:
    """Samples {"key", "image" (3, S, S), "text", "image_id"} -> batch of tensors; texts cleaned and tokenised.

    `input_ids` (B, L) start with [CLS]; the roles of the text transformer overwrite position 0 (see `with_first`).
    Texts are padded to the longest of the batch: masked padding changes no loss, and costs time.
    """

    tokenizer: Tokenizer
    max_tokens: int
    max_words: int = 30
    prompt: str = ""

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        texts = [self.prompt + clean_caption(s["text"], self.max_words) for s in samples]
        ids, mask = self.tokenizer(texts, max_length=self.max_tokens)
        return {
            "keys": [s["key"] for s in samples],
            "pixels": torch.stack([s["image"] for s in samples]),
            "input_ids": ids,
            "attention_mask": mask,
            "image_ids": torch.tensor([s.get("image_id", -1) for s in samples]),
        }


def with_first(ids: Tensor, token: int) -> Tensor:
    """A copy of `ids` (B, L) whose position 0 is `token`: [ENC] to fuse, [DEC] to decode (BLIP replaces [CLS])."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids
