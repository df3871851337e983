"""A random Hugging Face BLIP of the released text width whose config.json states 8 text heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from blipcore.checkpoints.save import save_huggingface
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.tokenizer import Tokenizer


def save_wide_model(folder: Path, vocabulary: Sequence[str], *parts: str) -> Path:
    """Save a model with `parts` (encode, decode, itc, itm) and one text layer of width 768."""
    tokenizer = Tokenizer.from_vocab(list(vocabulary))
    config = BlipConfig(
        VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2),
        TextConfig(len(tokenizer), 768, 1, 12, 64, 40, encoder_width=32),
        embed_dim=8,
    )
    torch.manual_seed(0)
    model = Blip(config.select_parts(*parts))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    save_huggingface(folder, model, tokenizer)
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"]["num_attention_heads"] = 8
    (folder / "config.json").write_text(json.dumps(raw))
    return folder
