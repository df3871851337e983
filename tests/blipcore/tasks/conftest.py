"""Tiny random models and their tokenizer."""

from dataclasses import replace

import pytest
import torch
from tiny_tasks import tiny_model, tiny_tokenizer

from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer


@pytest.fixture(scope="package")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer: Tokenizer) -> Blip:
    """A pre-training model."""
    return tiny_model(tokenizer)


@pytest.fixture(scope="package")
def filter_model(tokenizer: Tokenizer) -> Blip:
    """A filter whose weights are so large that its scores depend on picture and text."""
    model = tiny_model(tokenizer).select_parts("encode", "itc", "itm").eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)
    return model


@pytest.fixture
def wide_model(tokenizer: Tokenizer) -> Blip:
    """A pre-training model of four text layers whose question states are not as wide as its image tokens."""
    tiny = PRESETS["tiny"]
    vision = replace(tiny.vision, image_size=16, width=48, depth=2, heads=2)
    sizes = dict(vocab_size=len(tokenizer), width=32, heads=2, depth=4, hidden=64, encoder_width=48)
    torch.manual_seed(0)
    model = Blip(replace(tiny, vision=vision, text=replace(tiny.text, **sizes), embed_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
