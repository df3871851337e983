"""A tiny random model with its tokenizer, and samples to collate: for tests of the tasks."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.task import Progress

WORDS = ["a", "red", "blue", "green", "dog", "cat", "and", "on", "the", "mat", "left", "right", "what", "is", "?"]
TEXTS = ["a red dog", "a blue cat", "a green dog and a cat", "a red dog"]
START = Progress(0, 10)


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


def tiny_model(tokenizer: Tokenizer) -> Blip:
    """Return a pre-training model for images of 16 pixels."""
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    vision = replace(config.vision, image_size=16, width=32, depth=2, heads=2)
    text = replace(config.text, vocab_size=len(tokenizer), width=32, heads=2, hidden=64, encoder_width=32)
    return Blip(replace(config, vision=vision, text=text, embed_dim=16))


def caption_samples(texts: Iterable[str] = TEXTS, ids: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """Return samples of random images, with image ids 0, 1, ... by default."""
    torch.manual_seed(1)
    texts = list(texts)
    return [
        {"key": f"k{i}", "image": torch.randn(3, 16, 16), "text": text, "image_id": i}
        for i, text in zip(ids or range(len(texts)), texts, strict=True)
    ]
