"""A model prepared for inference gives the numbers of the plain model, in every backend and number format."""

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from blipcore.device import Backend, Dtype, supports_bf16
from blipcore.inference.prepare import CPU_CHUNK, PackedLinear, prepare_for_inference
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.vit import VisionTransformer, normalise_pixels

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
VISION = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2)
# More images than one chunk.
PIXELS = torch.randn(CPU_CHUNK + 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make_blip(**vision: Any) -> Blip:
    torch.manual_seed(0)
    text = TextConfig(40, width=32, depth=2, heads=2, hidden=64, max_positions=40, encoder_width=32, dropout=0.0)
    model = Blip(BlipConfig(replace(VISION, **vision), text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def relative_error(result: Tensor, expected: Tensor) -> float:
    return ((result.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("vision", [{}, {"pre_norm": True, "activation": "quick_gelu"}])
@pytest.mark.parametrize(
    ("dtype", "backend", "tolerance"),
    [
        ("fp32", "torch", 1e-5),
        ("bf16", "torch", 0.03),
        pytest.param("bf16", "openvino", 0.03, marks=needs_openvino),
        pytest.param("bf16", "openvino-int8", 0.05, marks=needs_openvino),
        pytest.param("fp32", "openvino-int8", 0.05, marks=needs_openvino),
    ],
)
@torch.inference_mode()
def test_image_tokens_are_close_to_those_of_the_plain_model(
    dtype: Dtype, backend: Backend, tolerance: float, vision: dict[str, Any]
) -> None:
    expected = make_blip(**vision).encode_image(PIXELS)
    model = prepare_for_inference(make_blip(**vision), "cpu", dtype, backend)
    embeds = model.encode_image(PIXELS)
    assert embeds.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    assert embeds.shape == expected.shape and relative_error(embeds, expected) < tolerance
    # The tolerance means something: an average over tokens is ten times farther away.
    assert relative_error(embeds.mean(1, keepdim=True), expected) > 10 * tolerance
    byte_pixels = torch.arange(PIXELS.numel()).view_as(PIXELS).mul(7).remainder(256).to(torch.uint8)
    assert torch.equal(model.encode_image(byte_pixels), model.encode_image(normalise_pixels(byte_pixels)))


@torch.inference_mode()
def test_compiled_blocks_give_the_same_image_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    model = prepare_for_inference(make_blip(), "cpu", "fp32", "compile")
    assert compiled == ["Block", "Block"]
    assert relative_error(model.encode_image(PIXELS), make_blip().encode_image(PIXELS)) < 1e-5


@pytest.mark.slow  # compiles for half a minute
@torch.inference_mode()
def test_a_compiled_encoder_gives_close_image_tokens() -> None:
    embeds = prepare_for_inference(make_blip(), "cpu", "bf16", "compile").encode_image(PIXELS)
    assert relative_error(embeds, make_blip().encode_image(PIXELS)) < 0.03


@pytest.mark.skipif(not supports_bf16("cpu"), reason="needs a CPU with bf16 units")
@torch.inference_mode()
def test_packed_weights_give_close_logits() -> None:
    plain, packed = make_blip().bfloat16(), prepare_for_inference(make_blip(), "cpu", "bf16")
    layers = [name for name, module in packed.named_modules() if isinstance(module, PackedLinear)]
    # Four per image encoder block, eight per text layer, and those of the heads.
    assert len(layers) == 2 * 4 + 2 * 8 + 4
    unpacked = {name for name, module in packed.named_modules() if isinstance(module, torch.nn.Linear)}
    assert unpacked == {"text.layers.0.cross.kv", "text.layers.1.cross.kv"}
    ids = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    logits = []
    for model in (plain, packed):
        text, kv = model.text, model.text.image_kv(model.visual_encoder(PIXELS[:2].bfloat16()))
        logits.append([model.itm_logits(text.fuse(ids, mask, kv)), text.logits(text.decode(ids, mask, kv))])
    torch.testing.assert_close(logits[1], logits[0], atol=0.02, rtol=0.02)


@torch.inference_mode()
def test_a_cpu_encodes_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = VisionTransformer.forward

    def count(encoder: VisionTransformer, pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return forward(encoder, pixels)

    monkeypatch.setattr(VisionTransformer, "forward", count)
    prepare_for_inference(make_blip(), "cpu", "fp32").encode_image(PIXELS)
    assert sizes == [len(PIXELS), CPU_CHUNK, len(PIXELS) - CPU_CHUNK]
