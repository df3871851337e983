"""Captioners and scorers on a GPU, as far as that can be checked without one: see `pretend_gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretend_gpu import pretend_gpu
from tiny_vlm import save_tiny_vlm

from blipcore.generate.config import GenerateConfig
from capfilt.caption.blip import BlipCaptioner
from capfilt.caption.chat import ChatConfig
from capfilt.caption.hf import HfCaptioner
from capfilt.filter.blip import BlipScorer
from capfilt.filter.clip import OpenClipScorer

pytestmark = pytest.mark.skipif(torch.backends.cuda.is_built(), reason="needs torch's build for CPUs")

TEXTS = [["a red dog", "Two green trees!!"], [], ["three"]]
KEYS = ["a", "b", "c"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("who", ["blip", "clip"])
def test_scores(who: str, dtype: str, tiny_filter: Path, tiny_clip: str, draw) -> None:
    def scores(device: str) -> dict:
        kind, model = {"blip": (BlipScorer, str(tiny_filter)), "clip": (OpenClipScorer, tiny_clip)}[who]
        scorer = kind(model, device=device, dtype=dtype)
        return scorer.score([scorer.prepare(draw(number)) for number in range(3)], TEXTS)

    expected = scores("cpu")
    with pretend_gpu():
        found = scores("cuda:0")
    for column in expected:
        for some, same in zip(found[column], expected[column], strict=True):
            assert some == pytest.approx(same, abs=1e-5 if dtype == "fp32" else 0.05)


@pytest.mark.parametrize("mode", ["nucleus", "beam"])
def test_captions(mode: str, tiny_captioner: Path, draw) -> None:
    def captions(device: str, dtype: str) -> list:
        settings = GenerateConfig(mode=mode, num_captions=2)
        captioner = BlipCaptioner(str(tiny_captioner), settings, device=device, dtype=dtype)
        told = captioner.caption([captioner.prepare(draw(number)) for number in range(3)], KEYS)
        return [[text for text, _ in of_picture] for of_picture in told]

    expected = captions("cpu", "fp32")
    with pretend_gpu():
        assert captions("cuda:0", "fp32") == expected
        captions("cuda:0", "bf16")


def test_captions_of_transformers(tmp_path: Path, draw) -> None:
    folder = save_tiny_vlm(tmp_path / "llava")

    def captions(device: str, dtype: str) -> list:
        settings = ChatConfig(prompt="describe this image", max_new_tokens=9, num_captions=2)
        captioner = HfCaptioner(str(folder), settings, device=device, dtype=dtype)
        told = captioner.caption([captioner.prepare(draw(number)) for number in range(3)], KEYS)
        return [[caption.text for caption in of_picture] for of_picture in told]

    expected = captions("cpu", "fp32")
    with pretend_gpu():
        assert captions("cuda:0", "fp32") == expected
        captions("cuda:0", "bf16")
