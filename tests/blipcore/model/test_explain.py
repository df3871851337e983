"""Cross-attention maps are probabilities and change no result. Heat maps are tested with the Python interface."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.explain import cross_attention_maps

CONFIG = BlipConfig(
    VisionConfig(image_size=16, patch_size=8, width=24, depth=1, heads=2),
    TextConfig(20, 32, 3, 2, 48, 24, encoder_width=24, dropout=0.0),
    embed_dim=8,
)
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 3 + [0] * 3, [1] * 5 + [0]])


@pytest.fixture
def model() -> Blip:
    torch.manual_seed(0)
    return Blip(CONFIG).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 20, (5, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def image_embeds(model: Blip) -> Tensor:
    with torch.no_grad():
        return model.encode_image(torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2)))


def test_maps_are_probabilities_and_the_states_stay_the_same(model: Blip, ids: Tensor, image_embeds: Tensor) -> None:
    kv = model.text.image_kv(image_embeds)
    states, maps = cross_attention_maps(model.text, ids, MASK, kv)
    assert_close(states, model.text.fuse(ids, MASK, kv), atol=1e-5, rtol=1e-5)
    assert [tuple(layer.shape) for layer in maps] == [(5, 2, 6, 5)] * 3
    for layer in maps:
        assert_close(layer.sum(-1), torch.ones(layer.shape[:3]))


def test_several_texts_of_one_image_have_the_maps_of_single_texts(
    model: Blip, ids: Tensor, image_embeds: Tensor
) -> None:
    kv = model.text.image_kv(image_embeds)
    _, grouped = cross_attention_maps(model.text, ids[:4], MASK[:4], kv.first(2))
    _, single = cross_attention_maps(model.text, ids[:4], MASK[:4], kv.select(torch.tensor([0, 0, 1, 1])))
    assert_close(grouped[0], single[0])


@pytest.mark.parametrize("frozen", [False, True])
def test_maps_are_part_of_the_graph(model: Blip, ids: Tensor, image_embeds: Tensor, frozen: bool) -> None:
    model.requires_grad_(not frozen)
    states, maps = cross_attention_maps(model.text, ids, MASK, model.text.image_kv(image_embeds))
    (gradient,) = torch.autograd.grad(model.itm_logits(states)[:, 1].sum(), maps[1])
    assert gradient.shape == maps[1].shape and gradient.abs().sum() > 0


def test_decoding_has_maps_too(model: Blip, ids: Tensor, image_embeds: Tensor) -> None:
    maps: list[Tensor] = []
    model.text.decode(ids, MASK, model.text.image_kv(image_embeds), maps=maps)
    assert [tuple(layer.shape) for layer in maps] == [(5, 2, 6, 5)] * 3


def test_each_image_of_a_pair_has_a_map(model: Blip, ids: Tensor, image_embeds: Tensor) -> None:
    pairs = model.select_parts("encode", "nlvr").eval()
    kv = pairs.text.image_kv(torch.stack([image_embeds, image_embeds.flip(0)], dim=1))
    _, maps = cross_attention_maps(pairs.text, ids, MASK, kv)
    assert len(maps) == 2 * 3
