"""Small models with random weights for each task, and their vocabulary, for tests of checkpoints."""

import torch
from torch.testing import assert_close

from blipcore.checkpoints.load import TASK_PARTS
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.tokenizer import BERT_SPECIALS

VOCAB = [*BERT_SPECIALS, "a", "dog", "red", "bus"]
CONFIG = BlipConfig(
    VisionConfig(image_size=16, patch_size=8, width=64, depth=2, heads=1),
    TextConfig(len(VOCAB) + 2, 128, 2, 2, 48, 12, encoder_width=64),
    embed_dim=8,
)


def random_model(task: str) -> Blip:
    """Return a model with the parts of `task`; the same weights for every call."""
    torch.manual_seed(0)
    model = Blip(CONFIG.select_parts(*TASK_PARTS[task]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def assert_same_model(model: Blip, expected: Blip) -> None:
    """Assert equal configs and bit-identical weights."""
    config, other = model.config, expected.config
    assert (config.vision, config.text, config.heads) == (other.vision, other.text, other.heads)
    # Only the ITC projections have the width of the joint space.
    assert config.embed_dim == other.embed_dim or "itc" not in other.heads
    state = model.state_dict()
    for name, tensor in expected.state_dict().items():
        assert_close(state[name], tensor, rtol=0, atol=0)
