"""A two-layer captioner with random weights, its tokenizer, and random images, for tests of generation."""

import torch
from torch import Tensor

from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer

TOKENIZER = Tokenizer.from_vocab([*BERT_SPECIALS, "a", "picture", "of", *(f"w{i}" for i in range(24))])
IMAGES = 9
KEYS = [f"00000{i}" for i in range(IMAGES)]


def random_captioner(heads: int = 2) -> Blip:
    """Return a captioner with next-token distributions neither flat nor certain, which ends texts early."""
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


def random_images(count: int = IMAGES, seed: int = 1) -> Tensor:
    """Return random image tokens (count, 5, 16) for `random_captioner`."""
    return torch.randn(count, 5, 16, generator=torch.Generator().manual_seed(seed))


def decode_uncached(model: Blip, image_embeds: Tensor, ids: list[int]) -> Tensor:
    """Return logits (L, V) of one text about one image (N, W), in a single pass without cache."""
    tokens = torch.tensor([ids])
    hidden = model.text.decode(tokens, torch.ones_like(tokens), model.text.image_kv(image_embeds[None]))
    return model.text.logits(hidden)[0]
