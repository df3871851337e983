"""A captioner of two layers with random weights, and its words, for tests of how captions come about."""

import torch

from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer

TOKENIZER = Tokenizer.from_vocab([*BERT_SPECIALS, "a", "picture", "of", *(f"w{i}" for i in range(24))])


def random_captioner(heads: int = 2) -> Blip:
    """Its next-token distributions are neither flat nor certain, and it likes to stop."""
    torch.manual_seed(0)
    config = BlipConfig(
        VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2),
        TextConfig(len(TOKENIZER), 16, 2, heads, 32, 32, encoder_width=16, dropout=0.0, roles=("decode",)),
        heads=(),
    )
    model = Blip(config).eval()
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.text.lm_head.bias[TOKENIZER.sep] += 1.0
    return model
