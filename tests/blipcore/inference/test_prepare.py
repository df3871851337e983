"""A model made ready to be asked says what it said before, through every backend and number format."""

import importlib.util
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from blipcore.device import resolve_backend, supports_bf16
from blipcore.inference import prepare as inference
from blipcore.inference.prepare import PackedLinear, for_inference
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig, TextConfig, VisionConfig
from blipcore.model.vit import VisionTransformer, normalised

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
VISION = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2)
PIXELS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))  # more than one chunk


def blip(**vision) -> Blip:
    torch.manual_seed(0)
    text = TextConfig(40, width=32, depth=2, heads=2, hidden=64, max_positions=40, encoder_width=32, dropout=0.0)
    model = Blip(BlipConfig(replace(VISION, **vision), text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("vision", [{}, {"pre_norm": True, "activation": "quick_gelu"}])
@pytest.mark.parametrize(
    ("dtype", "backend", "off"),
    [
        ("fp32", "torch", 1e-5),
        ("bf16", "torch", 0.03),
        pytest.param("bf16", "openvino", 0.03, marks=needs_openvino),
        pytest.param("bf16", "openvino-int8", 0.05, marks=needs_openvino),
        pytest.param("fp32", "openvino-int8", 0.05, marks=needs_openvino),
    ],
)
@torch.inference_mode()
def test_image_tokens_are_those_of_the_plain_model(dtype: str, backend: str, off: float, vision: dict) -> None:
    expected = blip(**vision).encode_image(PIXELS)
    model = for_inference(blip(**vision), "cpu", dtype, backend)
    found = model.encode_image(PIXELS)
    assert found.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    assert found.shape == expected.shape and difference(found, expected) < off
    # by a hair: what is measured is that each layer is where it belongs, and a mean would be far off
    assert difference(found.mean(1, keepdim=True), expected) > 10 * off
    bytes_ = torch.arange(6 * 3 * 32 * 32).view_as(PIXELS).mul(7).remainder(256).to(torch.uint8)
    assert torch.equal(model.encode_image(bytes_), model.encode_image(normalised(bytes_)))


@needs_openvino
@torch.inference_mode()
def test_in_int8_no_picture_changes_another() -> None:
    encoder = for_inference(blip(), "cpu", "fp32", "openvino-int8").visual_encoder
    alone = torch.cat([encoder(picture[None]) for picture in PIXELS * torch.arange(1, 7)[:, None, None, None]])
    assert difference(encoder(PIXELS * torch.arange(1, 7)[:, None, None, None]), alone) < 1e-6


@torch.inference_mode()
def test_compiled_blocks_say_the_same(monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    model = for_inference(blip(), "cpu", "fp32", "compile")
    assert compiled == ["Block", "Block"]
    assert difference(model.encode_image(PIXELS), blip().encode_image(PIXELS)) < 1e-5


@pytest.mark.slow  # compiles for half a minute
@torch.inference_mode()
def test_a_compiled_encoder_says_the_same() -> None:
    found = for_inference(blip(), "cpu", "bf16", "compile").encode_image(PIXELS)
    assert difference(found, blip().encode_image(PIXELS)) < 0.03


@pytest.mark.skipif(not supports_bf16("cpu"), reason="needs a CPU with bf16 units")
@torch.inference_mode()
def test_packed_weights_give_the_same_numbers() -> None:
    plain, packed = blip().bfloat16(), for_inference(blip(), "cpu", "bf16")
    layers = [name for name, module in packed.named_modules() if isinstance(module, PackedLinear)]
    assert len(layers) == 2 * 4 + 2 * 8 + 4  # of the image encoder, the text body and the heads
    left = {name for name, module in packed.named_modules() if isinstance(module, torch.nn.Linear)}
    assert left == {"text.layers.0.cross.kv", "text.layers.1.cross.kv"}
    ids = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(2))
    said = []
    for model in (plain, packed):
        embeds = model.visual_encoder(PIXELS[:2].bfloat16())
        text, kv = model.text, model.text.image_kv(embeds)
        mask = torch.ones_like(ids)
        said.append([model.itm_logits(text.fuse(ids, mask, kv)), text.logits(text.decode(ids, mask, kv))])
    for found, expected in zip(said[1], said[0], strict=True):
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


@torch.inference_mode()
def test_few_words_read_image_tokens_without_keys_and_values() -> None:
    text, embeds = blip().text, torch.randn(3, 7, 32)
    ids = torch.randint(0, 40, (6, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    seen = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
    for image_mask in (None, seen):
        made, left_out = text.image_kv(embeds, image_mask), text.image_kv(embeds, image_mask, text_tokens=15)
        assert made.layers[0].ndim == 5 and left_out.layers[0].ndim == 4 and len(left_out) == len(made) == 3
        torch.testing.assert_close(text.fuse(ids, mask, left_out), text.fuse(ids, mask, made), atol=1e-5, rtol=1e-4)
        other = torch.tensor([2, 0])
        torch.testing.assert_close(
            text.decode(ids[:2], mask[:2], left_out.select(other)),
            text.decode(ids[:2], mask[:2], made.select(other)),
            atol=1e-5,
            rtol=1e-4,
        )
    assert text.image_kv(embeds, text_tokens=16).layers[0].ndim == 5  # as many tokens as a head has channels


def test_a_backend_is_settled_by_what_there_is(monkeypatch) -> None:
    for there, expected in ((None, "torch"), (object(), "openvino")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, there=there: there)
        assert resolve_backend("cpu", "bf16") == expected
        assert resolve_backend("cpu", "fp32") == resolve_backend("cuda", "bf16") == "torch"
        assert resolve_backend("cpu", "bf16", before="torch") == "torch"
        assert resolve_backend("cpu", "bf16", "compile", before="torch") == "compile"
    with pytest.raises(ValueError, match="backend openvino is for --device cpu with --dtype bf16"):
        resolve_backend("cpu", "fp32", "openvino")
    assert resolve_backend("cpu", "fp32", "openvino-int8") == "openvino-int8"
    with pytest.raises(ValueError, match="backend openvino-int8 is for --device cpu"):
        resolve_backend("cuda:0", "bf16", "openvino-int8")
    with pytest.raises(ValueError, match="backend is one of auto, "):
        resolve_backend("cpu", "bf16", "onnx")


def test_a_missing_openvino_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[openvino\]'"):
        for_inference(blip(), "cpu", "bf16", "openvino")


@needs_openvino
def test_openvino_is_imported_without_its_reports() -> None:
    from blipcore.inference.openvino import import_openvino

    import_openvino()
    assert sys.modules["openvino_telemetry"] is None


@torch.inference_mode()
def test_a_cpu_encodes_a_few_pictures_at_a_time(monkeypatch) -> None:
    seen = []
    forward = VisionTransformer.forward
    monkeypatch.setattr(VisionTransformer, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    for_inference(blip(), "cpu", "fp32").encode_image(PIXELS)
    assert seen == [len(PIXELS), inference.CHUNK, len(PIXELS) - inference.CHUNK]


ENCODER_ENDS_ELSEWHERE = """
import signal, threading
import torch
from blipcore.model.openvino import OpenVinoEncoder
from blipcore.model.vit import VisionConfig, VisionTransformer

signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
encoders = [OpenVinoEncoder(VisionTransformer(VisionConfig(32, 8, 32, 2, 2)).eval())]
encoders[0](torch.zeros(1, 3, 32, 32))
thread = threading.Thread(target=encoders.clear)
thread.start()
thread.join()
signal.raise_signal(signal.SIGUSR1)
"""


@needs_openvino
def test_signals_are_heard_after_an_encoder_ended_on_another_thread() -> None:
    code = ["-c", ENCODER_ENDS_ELSEWHERE]
    run = subprocess.run([sys.executable, *code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "heard\n"), run.stderr
