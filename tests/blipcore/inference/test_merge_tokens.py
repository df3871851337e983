"""Token merging: against a written-out reference, through all backends, weighted in cross-attention."""

import importlib.util

import pytest
import torch
from torch import Tensor

from blipcore.inference.merge_tokens import MergingEncoder, merge_tokens, merges_per_block
from blipcore.inference.prepare import prepare_for_inference
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.vit import VisionTransformer

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")


VISION = VisionConfig(image_size=32, patch_size=8, width=32, depth=3, heads=2)


def make_blip() -> Blip:
    torch.manual_seed(0)
    text = TextConfig(60, width=32, depth=2, heads=2, hidden=64, max_positions=40, encoder_width=32, dropout=0.0)
    return Blip(BlipConfig(VISION, text)).eval()


def make_encoder() -> VisionTransformer:
    torch.manual_seed(0)
    encoder = VisionTransformer(VISION).eval()
    torch.nn.init.normal_(encoder.pos_embed)
    return encoder


def pixels(images: int = 3) -> Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def merge_one(x: Tensor, keys: Tensor, sizes: list[float], merges: int) -> tuple[list[Tensor], list[float]]:
    """Merge the tokens of one image, pair by pair; return them in any order, the class token first."""
    keys = torch.nn.functional.normalize(keys, dim=-1)
    odd = range(1, len(x), 2)
    proposals = []
    for a in range(2, len(x), 2):
        similarity = {b: float(keys[a] @ keys[b]) for b in odd}
        b = max(similarity, key=similarity.__getitem__)
        proposals.append((similarity[b], a, b))
    groups = {b: [b] for b in odd} | {a: [a] for a in range(0, len(x), 2)}
    for _, a, b in sorted(proposals, reverse=True)[:merges]:
        groups[b].append(a)
        del groups[a]
    totals = {first: sum(sizes[i] for i in members) for first, members in groups.items()}
    means = {first: sum(x[i] * sizes[i] for i in members) / totals[first] for first, members in groups.items()}
    order = sorted(groups)
    return [means[first] for first in order], [totals[first] for first in order]


@pytest.mark.parametrize("merges", [1, 4, 8])
def test_the_most_similar_pairs_become_their_weighted_mean(merges: int) -> None:
    generator = torch.Generator().manual_seed(merges)
    x, keys = torch.randn(2, 17, 6, generator=generator), torch.randn(2, 17, 4, generator=generator)
    sizes = torch.randint(1, 4, (2, 17), generator=generator).float()
    merged, merged_sizes = merge_tokens(x, keys, sizes, merges)
    assert merged.shape == (2, 17 - merges, 6)
    for image in range(2):
        tokens, numbers = merge_one(x[image], keys[image], sizes[image].tolist(), merges)
        torch.testing.assert_close(merged[image, 0], tokens[0])  # the class token
        expected = torch.cat([torch.stack(tokens), torch.tensor(numbers)[:, None]], dim=1)
        actual = torch.cat([merged[image], merged_sizes[image][:, None]], dim=1)
        torch.testing.assert_close(actual[actual[:, 0].argsort()], expected[expected[:, 0].argsort()])


@torch.inference_mode()
def test_no_merges_give_the_plain_encoder() -> None:
    tokens, sizes = MergingEncoder(make_encoder(), 0)(pixels())
    torch.testing.assert_close(tokens, make_encoder()(pixels()))
    assert (sizes == 1).all()


def test_a_block_halves_the_tokens_at_most() -> None:
    assert merges_per_block(make_encoder(), 5) == [5, 5, 3]
    assert merges_per_block(make_encoder(), 100) == [8, 4, 2]
    with pytest.raises(ValueError, match="merge_tokens is a number of tokens per layer, at least 0, not -1"):
        merges_per_block(make_encoder(), -1)


@torch.inference_mode()
def test_equal_tokens_can_merge_without_any_change() -> None:
    """All patches are equal, so after merging, sizes in the attention must make up for the tokens that are gone."""
    encoder = make_encoder()
    torch.nn.init.zeros_(encoder.pos_embed)
    same = torch.ones(2, 3, 32, 32)
    plain, (merged, sizes) = encoder(same), MergingEncoder(encoder, 5)(same)
    torch.testing.assert_close(merged[:, 0], plain[:, 0])
    torch.testing.assert_close(merged[:, -1], plain[:, -1])
    assert sizes.sum(1).tolist() == [17, 17]


@needs_openvino
@pytest.mark.parametrize("merges", [2, 5])
@torch.inference_mode()
def test_openvino_merges_the_same_tokens(merges: int) -> None:
    from blipcore.inference.openvino import OpenVinoEncoder

    tokens, sizes = MergingEncoder(make_encoder(), merges)(pixels(5))
    others, other_sizes = OpenVinoEncoder(make_encoder(), torch.float32, merge_tokens=merges)(pixels(5))
    torch.testing.assert_close(others, tokens, atol=1e-5, rtol=1e-4)
    assert torch.equal(other_sizes, sizes)


@pytest.mark.parametrize("text_tokens", [None, 1.0, 1000.0])
@torch.inference_mode()
def test_a_token_of_three_patches_counts_as_three_in_cross_attention(text_tokens: float | None) -> None:
    text = make_blip().text.eval()
    ids = torch.randint(5, 50, (2, 4), generator=torch.Generator().manual_seed(2))
    tokens = torch.randn(2, 5, text.config.encoder_width, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0]] * 2)
    repeated = tokens.repeat_interleave(sizes[0].long(), dim=1)

    def fuse(kv: ImageKV) -> Tensor:
        return text.fuse(ids, torch.ones_like(ids), kv)

    weighted = fuse(text.image_kv(tokens, sizes, text_tokens=text_tokens))
    torch.testing.assert_close(weighted, fuse(text.image_kv(repeated, text_tokens=text_tokens)), atol=1e-5, rtol=1e-4)


def test_a_model_that_merges_tokens_refuses_to_lose_their_sizes() -> None:
    model = prepare_for_inference(make_blip(), "cpu", "fp32", merge_tokens=2)
    side = model.config.vision.image_size
    with pytest.raises(AssertionError, match="use encode_merged"):
        model.encode_image(torch.zeros(1, 3, side, side))
