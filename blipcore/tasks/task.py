"""The Task interface: a model and its losses, which the Trainer trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blipcore.checkpoints.save import save_model
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption

Batch = dict[str, Any]  # tensors by name, and "keys": the keys of the pictures
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """Progress of the run: `step` of `steps` optimizer steps are done."""

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        return self.step / max(self.steps, 1)


class Task(nn.Module, ABC):
    """A model with its training objective, configured by `config`.

    One optimizer step calls `before_step`, then `forward` per micro-batch, then `after_step` with the outputs of all
    micro-batches. `forward` has no side effects; momentum encoders and queues change in the other two.
    """

    collate: Callable[[list[dict[str, Any]]], Batch]  # picklable, since data workers call it

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: Any) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        """Return `loss`, a scalar to differentiate, its parts `loss_*`, and other tensors that `after_step` needs."""

    def before_step(self, progress: Progress) -> None:
        """Update momentum encoders. Default: nothing."""

    def after_step(self, outputs: list[Outputs]) -> None:
        """Update queues, after the optimizer. Default: nothing."""

    def save(self, folder: Path, model: Blip) -> None:
        """Write a checkpoint folder of `model`, the unsharded model of this task, with the tokenizer."""
        save_model(folder, model, self.tokenizer)

    def load_extra(self, tensors: Mapping[str, Tensor]) -> None:
        """Load momentum encoders and queues from the checkpoint. Default: nothing."""


@dataclass
class Collate:
    """Turns samples {"key", "image" (3, S, S), "text", "image_id"} into a batch, with texts cleaned and tokenized.

    `input_ids` (B, L) start with [CLS]; the roles of the text transformer replace position 0 (see `replace_first`).
    Texts are padded to the longest of the batch.
    """

    tokenizer: Tokenizer
    max_tokens: int
    max_words: int = 30
    prompt: str = ""

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        texts = [self.prompt + clean_caption(sample["text"], self.max_words) for sample in samples]
        ids, mask = self.tokenizer(texts, max_length=self.max_tokens)
        return {
            "keys": [sample["key"] for sample in samples],
            "pixels": torch.stack([sample["image"] for sample in samples]),
            "input_ids": ids,
            "attention_mask": mask,
            "image_ids": torch.tensor([sample.get("image_id", -1) for sample in samples]),
        }


def replace_first(ids: Tensor, token: int) -> Tensor:
    """Return a copy of `ids` (B, L) with `token` in place of [CLS] at position 0: [ENC] to fuse, [DEC] to decode."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids
