"""Captioners and scorers on a pretended GPU (see `pretend_gpu`), for machines without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from pretend_gpu import pretend_gpu
from tiny_vlm import save_tiny_vlm

from blipcore.device import Dtype
from blipcore.generate.config import GenerateConfig
from capfilt.caption.blip import BlipCaptioner
from capfilt.caption.captioner import Captioner
from capfilt.caption.chat import ChatConfig
from capfilt.caption.hf import HfCaptioner
from capfilt.filter.blip import BlipScorer
from capfilt.filter.clip import OpenClipScorer
from capfilt.filter.scorer import Runtime, Scorer

pytestmark = pytest.mark.skipif(torch.backends.cuda.is_built(), reason="needs torch's build for CPUs")

TEXTS = [["a red dog", "Two green trees!!"], [], ["three"]]
KEYS = ["a", "b", "c"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["blip", "clip"])
def test_scores_match_those_of_the_cpu(name: str, dtype: Dtype, tiny_filter: Path, tiny_clip: str, draw) -> None:
    def scores(device: str) -> dict[str, list[list[float]]]:
        scorer: Scorer = BlipScorer(str(tiny_filter)) if name == "blip" else OpenClipScorer(tiny_clip)
        scorer.load(Runtime(device, dtype))
        return scorer.score([scorer.prepare(draw(number)) for number in range(3)], TEXTS)

    expected = scores("cpu")
    with pretend_gpu():
        on_gpu = scores("cuda:0")
    for column in expected:
        for gpu_scores, cpu_scores in zip(on_gpu[column], expected[column], strict=True):
            assert gpu_scores == pytest.approx(cpu_scores, abs=1e-5 if dtype == "fp32" else 0.05)


def captions(captioner: Captioner, draw: Callable[[int], Image.Image]) -> list[list[str | None]]:
    captions_of_pictures = captioner.caption([captioner.prepare(draw(number)) for number in range(3)], KEYS)
    return [[caption.text for caption in captions_of_picture] for captions_of_picture in captions_of_pictures]


@pytest.mark.parametrize("mode", ["nucleus", "beam"])
def test_captions_match_those_of_the_cpu(mode: Literal["nucleus", "beam"], tiny_captioner: Path, draw) -> None:
    def captioner(device: str, dtype: Dtype) -> BlipCaptioner:
        settings = GenerateConfig(mode=mode, num_captions=2)
        return BlipCaptioner(str(tiny_captioner), settings, device=device, dtype=dtype)

    expected = captions(captioner("cpu", "fp32"), draw)
    with pretend_gpu():
        assert captions(captioner("cuda:0", "fp32"), draw) == expected
        captions(captioner("cuda:0", "bf16"), draw)


def test_captions_of_transformers_match_those_of_the_cpu(tmp_path: Path, draw) -> None:
    folder = save_tiny_vlm(tmp_path / "llava")

    def captioner(device: str, dtype: Dtype) -> HfCaptioner:
        settings = ChatConfig(prompt="describe this image", max_new_tokens=9, num_captions=2)
        return HfCaptioner(str(folder), settings, device=device, dtype=dtype)

    expected = captions(captioner("cpu", "fp32"), draw)
    with pretend_gpu():
        assert captions(captioner("cuda:0", "fp32"), draw) == expected
        captions(captioner("cuda:0", "bf16"), draw)
