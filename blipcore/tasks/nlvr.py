"""NLVR2: whether a sentence about two pictures is true. Each picture has its own cross-attention in the encoder."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.shuffle import hash_index
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.task import Batch, Outputs, Progress, Task

SWAPPED_SIDES = {"left": "right", "right": "left"}


@dataclass
class NLVRConfig:
    """Settings of NLVR2; as in the official code, sentences are cut by words, not by tokens."""

    max_words: int = 40
    # swap the pictures of half of the pairs (others in each epoch), and "left" and "right" in their sentences
    swap: bool = True


@dataclass
class CollatePairs:
    """Turns samples {"key", "image" (2, 3, S, S), "text", "label", "epoch"} into a batch."""

    tokenizer: Tokenizer
    config: NLVRConfig
    max_tokens: int

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        pixels, texts = [], []
        for sample in samples:
            image, text = sample["image"], clean_caption(sample["text"], self.config.max_words)
            if self.config.swap and hash_index(2, sample["epoch"], sample["key"], sample["text"]):
                image, text = image.flip(0), swap_sides(text)
            pixels.append(image)
            texts.append(text)
        ids, mask = self.tokenizer(texts, max_length=self.max_tokens, first="enc")
        return {
            "keys": [sample["key"] for sample in samples],
            "pixels": torch.stack(pixels),
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([int(sample["label"]) for sample in samples]),
        }


class NLVRTask(Task):
    """`loss` is the cross-entropy of the classes false and true."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: NLVRConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = CollatePairs(tokenizer, config, model.config.text.max_positions)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        logits = pair_logits(self.model, batch["pixels"], batch["input_ids"], batch["attention_mask"])
        loss = F.cross_entropy(logits, batch["labels"])
        return {"loss": loss, "loss_nlvr": loss.detach()}


def swap_sides(text: str) -> str:
    """Swap the words "left" and "right"."""
    return " ".join(SWAPPED_SIDES.get(word, word) for word in text.split(" "))


def pair_logits(model: Blip, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return logits (B, 2) of sentences (B, L) with [ENC] first about pixels (B, 2, 3, S, S); class 1 is "true"."""
    image_embeds = model.encode_image(pixels.flatten(0, 1)).unflatten(0, (-1, 2))  # (B, 2, N, W)
    return model.nlvr_logits(model.text.fuse(ids, mask, model.text.image_kv(image_embeds)))


@torch.inference_mode()
def evaluate_nlvr(
    model: Blip, tokenizer: Tokenizer, pictures: EvalBatches, config: NLVRConfig | None = None
) -> dict[str, float]:
    """Return the accuracy in percent on the pairs of `read_image_pairs`.

    The official evaluation swaps a random half of the pairs, so its result varies; this one swaps none.
    """
    model.eval()
    config = config or NLVRConfig()
    device, correct = next(model.parameters()).device, 0
    for records, pixels in pictures:
        texts = [clean_caption(record["sentence"], config.max_words) for record in records]
        ids, mask = tokenizer(texts, max_length=model.config.text.max_positions, first="enc")
        prediction = pair_logits(model, pixels.to(device), ids.to(device), mask.to(device)).argmax(1).cpu()
        correct += int((prediction == torch.tensor([record["label"] for record in records])).sum())
    return {"accuracy": 100 * correct / len(pictures.records)}
