"""NLVR2: is a sentence true of two pictures? The encoder reads both at once, each by a cross-attention of its own."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from blipcore.data.eval_batches import Pictures
from blipcore.data.shuffle import draw
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.task import Batch, Outputs, Progress, Task

SIDES = {"left": "right", "right": "left"}


@dataclass
class NLVRConfig:
    """A sentence is cut by words, never by tokens (official)."""

    max_words: int = 40
    swap: bool = True  # exchange the pictures of half of the pairs, and "left" and "right" in their sentences


@dataclass
class CollatePairs:
    """Samples {"key", "image" (2, 3, S, S), "text", "label", "epoch"} -> batch; which are swapped changes by epoch."""

    tokenizer: Tokenizer
    config: NLVRConfig
    max_tokens: int

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        pixels, texts = [], []
        for s in samples:
            image, text = s["image"], clean_caption(s["text"], self.config.max_words)
            if self.config.swap and draw(2, s["epoch"], s["key"], s["text"]):
                image, text = image.flip(0), other_side(text)
            pixels.append(image)
            texts.append(text)
        ids, mask = self.tokenizer(texts, max_length=self.max_tokens, first="enc")
        return {
            "keys": [s["key"] for s in samples],
            "pixels": torch.stack(pixels),
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([int(s["label"]) for s in samples]),
        }


class NLVRTask(Task):
    """`loss` is the cross-entropy of the two classes, false and true."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: NLVRConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = CollatePairs(tokenizer, config, model.config.text.max_positions)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        logits = pair_logits(self.model, batch["pixels"], batch["input_ids"], batch["attention_mask"])
        loss = F.cross_entropy(logits, batch["labels"])
        return {"loss": loss, "loss_nlvr": loss.detach()}


def other_side(text: str) -> str:
    """The sentence for exchanged pictures: the words left and right change places."""
    return " ".join(SIDES.get(word, word) for word in text.split(" "))


def pair_logits(model: Blip, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, 2) logits of sentences (B, L) that start with [ENC] about pixels (B, 2, 3, S, S); class 1 is "true"."""
    image_embeds = model.encode_image(pixels.flatten(0, 1)).unflatten(0, (-1, 2))  # (B, 2, N, W)
    return model.nlvr_logits(model.text.fuse(ids, mask, model.text.image_kv(image_embeds)))


@torch.inference_mode()
def evaluate_nlvr(
    model: Blip, tokenizer: Tokenizer, pictures: Pictures, config: NLVRConfig | None = None
) -> dict[str, float]:
    """Accuracy in percent on the pairs of `read_pairs`, in the order of the file.

    The official evaluation exchanges the pictures of a random half of the pairs, so that its number changes from run to
    run; ours exchanges none.
    """
    model.eval()
    config = config or NLVRConfig()
    device, right = next(model.parameters()).device, 0
    for records, pixels in pictures:
        texts = [clean_caption(record["sentence"], config.max_words) for record in records]
        ids, mask = tokenizer(texts, max_length=model.config.text.max_positions, first="enc")
        guess = pair_logits(model, pixels.to(device), ids.to(device), mask.to(device)).argmax(1).cpu()
        right += int((guess == torch.tensor([record["label"] for record in records])).sum())
    return {"accuracy": 100 * right / len(pictures.records)}
