"""The image encoder: pixels of both kinds, chunks, recomputed activations, stochastic depth, position tables."""

import pytest
import torch
from torch.testing import assert_close

from blipcore.model.config import VisionConfig
from blipcore.model.vit import CLIP_MEAN, CLIP_STD, VisionTransformer, normalise_pixels, resize_pos_embed

CONFIG = VisionConfig(image_size=16, patch_size=8, width=24, depth=3, heads=2)
PIXELS = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make_encoder(**options: float) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(VisionConfig(**{**vars(CONFIG), **options})).eval()


def test_bytes_are_normalised_with_clips_mean_and_deviation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    assert_close(normalise_pixels(pixels), (pixels / 255 - mean) / std)
    normalised = torch.randn(2, 3, 4, 4)
    assert normalise_pixels(normalised) is normalised


@torch.no_grad()
def test_tokens_are_the_class_token_and_one_per_patch() -> None:
    tokens = make_encoder()(PIXELS)
    assert tokens.shape == (5, 1 + 4, 24)
    assert_close(tokens.mean(-1), torch.zeros(5, 5), atol=1e-5, rtol=0)


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"Pixels are \(24, 24\); the model expects 16"):
        make_encoder()(torch.zeros(1, 3, 24, 24))


@torch.no_grad()
def test_chunks_give_the_same_tokens() -> None:
    encoder = make_encoder()
    expected = encoder(PIXELS)
    encoder.chunk_size = 2
    assert_close(encoder(PIXELS), expected)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for blocks in (0, 2):
        encoder = make_encoder().train()
        encoder.recompute_activations(blocks)
        encoder(PIXELS).pow(3).sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@torch.no_grad()
def test_stochastic_depth_drops_branches_in_training_alone() -> None:
    encoder = make_encoder(drop_path=0.5)
    assert torch.equal(encoder(PIXELS), make_encoder()(PIXELS))
    encoder.train()
    torch.manual_seed(1)
    survive = encoder._draw_survivors(torch.zeros(2000, 5, 24))
    assert isinstance(survive, torch.Tensor) and survive.shape == (3, 2, 2000, 1, 1)
    # The rates are 0, 0.25 and 0.5; survivors are scaled up so that the mean stays 1.
    assert_close(survive.eq(0).float().mean((1, 2, 3, 4)), torch.tensor([0.0, 0.25, 0.5]), atol=0.03, rtol=0)
    assert_close(survive.mean((1, 2, 3, 4)), torch.ones(3), atol=0.05, rtol=0)


def test_a_position_table_is_resized_and_its_class_row_kept() -> None:
    table = torch.randn(1, 1 + 4, 24)
    larger = resize_pos_embed(table, image_size=32, patch_size=8)
    assert larger.shape == (1, 1 + 16, 24) and torch.equal(larger[:, 0], table[:, 0])
    assert resize_pos_embed(table, image_size=16, patch_size=8) is table
    with pytest.raises(ValueError, match="A position table of 6 rows is no square grid"):
        resize_pos_embed(torch.zeros(1, 6, 24), image_size=16, patch_size=8)
