"""The model's heads, and models made from parts of another."""

import pytest
import torch
from torch.testing import assert_close

from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig

CONFIG = BlipConfig(
    VisionConfig(image_size=16, patch_size=8, width=24, depth=1, heads=2),
    TextConfig(20, 32, 2, 2, 48, 24, encoder_width=24, dropout=0.0),
    embed_dim=8,
)
IDS = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model() -> Blip:
    torch.manual_seed(0)
    return Blip(CONFIG).eval()


@torch.no_grad()
def test_features_are_unit_vectors_and_logits_have_two_classes(model: Blip) -> None:
    image_embeds = model.encode_image(PIXELS)
    image_feat, text_feat = model.image_feat(image_embeds), model.text_feat(model.text.encode(IDS, MASK))
    for feat in (image_feat, text_feat):
        assert feat.shape == (3, 8)
        assert_close(feat.norm(dim=1), torch.ones(3))
    assert model.itm_logits(model.text.fuse(IDS, MASK, model.text.image_kv(image_embeds))).shape == (3, 2)


@torch.no_grad()
@pytest.mark.parametrize("part", ["encode", "decode"])
def test_selected_parts_compute_what_the_whole_model_computes(model: Blip, part: str) -> None:
    selected = model.select_parts(part).eval()
    assert selected.itm_head is None and selected.vision_proj is None
    states = []
    for blip in (model, selected):
        kv = blip.text.image_kv(blip.encode_image(PIXELS))
        states.append(blip.text.fuse(IDS, MASK, kv) if part == "encode" else blip.text.decode(IDS, MASK, kv))
    assert torch.equal(states[1], states[0])


def test_selected_parts_are_copies(model: Blip) -> None:
    selected = model.select_parts("decode")
    with torch.no_grad():
        selected.visual_encoder.cls_token.add_(1)
    assert not torch.equal(selected.visual_encoder.cls_token, model.visual_encoder.cls_token)


def test_an_answer_decoder_starts_from_the_decoder(model: Blip) -> None:
    vqa = model.select_parts("encode", "vqa").state_dict()
    source = model.state_dict()
    assert torch.equal(vqa["answer_decoder.layers.0.decode.qkv.weight"], source["text.layers.0.decode.qkv.weight"])
    # Question states have another width than image tokens, so these weights start random.
    assert vqa["answer_decoder.layers.0.cross.kv.weight"].shape == (64, 32)


@torch.no_grad()
def test_both_cross_attentions_of_nlvr_start_from_the_single_one(model: Blip) -> None:
    nlvr = model.select_parts("encode", "nlvr").eval()
    state, source = nlvr.state_dict(), model.state_dict()
    for twin in ("first", "second"):
        assert torch.equal(state[f"text.layers.1.cross.{twin}.kv.weight"], source["text.layers.1.cross.kv.weight"])
    image_embeds = nlvr.encode_image(PIXELS)
    pairs = torch.stack([image_embeds, image_embeds], dim=1)
    assert nlvr.nlvr_logits(nlvr.text.fuse(IDS, MASK, nlvr.text.image_kv(pairs))).shape == (3, 2)


def test_parts_without_a_start_are_refused(model: Blip) -> None:
    with pytest.raises(ValueError, match="A model with the parts decode cannot start one with encode, itc"):
        model.select_parts("decode").select_parts("encode", "itc")
