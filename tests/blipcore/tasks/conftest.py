"""A tiny random filter and its tokenizer."""

from dataclasses import replace

import pytest
import torch

from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer

WORDS = ["a", "red", "blue", "green", "dog", "cat", "and", "on", "the", "mat"]


@pytest.fixture(scope="package")
def tokenizer():
    return Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


@pytest.fixture(scope="package")
def model(tokenizer):
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    vision = replace(config.vision, image_size=16, width=32, depth=2, heads=2)
    text = replace(config.text, vocab_size=len(tokenizer), width=32, heads=2, hidden=64, encoder_width=32)
    model = Blip(replace(config, vision=vision, text=text, embed_dim=16).only("encode", "itc", "itm")).eval()
    for parameter in model.parameters():  # else its scores are all but blind to picture and text
        parameter.data.mul_(3.0) if parameter.ndim > 1 else None
    return model
