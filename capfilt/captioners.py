"""A picture in, texts with their log-probabilities out: the `Captioner` protocol and its implementations.

The paper's captioner is BLIP's image-grounded decoder finetuned on human captions, sampling one caption a picture from
the nucleus p = 0.9. `capfilt caption` knows the protocol alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from blipcore.data.transforms import eval_transform
from blipcore.model.convert import fingerprint, load_model
from blipcore.model.generate import GenerateConfig, generate, prompt_that_fits
from blipcore.model.inference import Backend, for_inference, resolve_backend
from blipcore.precision import Dtype, resolve_dtype, to_device
from capfilt.captioner_hf import HfCaptioner, hf_fingerprint
from capfilt.captioner_openai import OpenAICaptioner, ServerConfig, openai_fingerprint
from capfilt.chat import Caption, ChatConfig

__all__ = [
    "Backend",
    "BlipCaptioner",
    "Caption",
    "Captioner",
    "ChatConfig",
    "Dtype",
    "GenerateConfig",
    "ServerConfig",
    "captioner_fingerprint",
    "kind_of",
    "open_captioner",
    "resolve_backend",
    "resolve_dtype",
]

ACCEPTED = (
    "a blipcore checkpoint folder, an official BLIP .pth file, a Hugging Face BLIP folder or hub id, "
    "hf:MODEL for any image-text-to-text model of transformers, or openai:MODEL for one behind a server"
)

Kind = Literal["blip", "hf", "openai"]


class Captioner(Protocol):
    """Makes texts for pictures; what it says of a picture must not depend on the other pictures of the call."""

    name: str
    fingerprint: str  # changes when the captions would

    def prepare(self, image: Image.Image) -> Any:
        """What `caption` needs of an RGB picture; called from reading threads, ahead of the model."""

    def caption(self, inputs: Sequence[Any], keys: Sequence[str]) -> Sequence[Sequence[Caption | tuple[str, float]]]:
        """For each prepared picture its captions as (text, log-probability), or as what `Caption` has besides."""


class BlipCaptioner:
    """BLIP's decoder; `GenerateConfig` says how it speaks, and its noise is a function of (seed, key, index) alone."""

    def __init__(
        self,
        model: str,
        settings: GenerateConfig | None = None,
        *,
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "auto",
        backend: Backend = "torch",
    ) -> None:
        self.name = "blip"
        self.fingerprint = fingerprint(model, tokenizer)
        self.settings = settings or GenerateConfig()
        self.device = device
        blip, self.tokenizer = load_model(model, needs=("decode",), tokenizer=tokenizer)
        self.model = for_inference(blip, device, dtype, backend)
        self.prepare = eval_transform(blip.config.vision.image_size)
        prompt_that_fits(blip.text, self.tokenizer, self.settings)  # before the first picture is read

    @torch.inference_mode()
    def caption(self, inputs: Sequence[Tensor], keys: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Captions of (3, S, S) pixel tensors, `settings.num_captions` for each."""
        pixels = to_device(torch.stack(list(inputs)), self.device)
        said = generate(self.model, self.model.encode_image(pixels), self.tokenizer, self.settings, keys)
        rows = [(self.tokenizer.decode(ids), p) for ids, p in zip(said.ids, said.logprob, strict=True)]
        n = self.settings.num_captions
        return [rows[b * n : (b + 1) * n] for b in range(len(keys))]


def open_captioner(
    spec: str,
    settings: GenerateConfig | ChatConfig | None = None,
    *,
    tokenizer: str | None = None,
    server: ServerConfig | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> Captioner:
    """Load the captioner that `spec` names, with settings of its kind; ValueError says what is accepted."""
    kind, model = _parse(spec)
    if kind == "blip":
        assert not isinstance(settings, ChatConfig)
        return BlipCaptioner(model, settings, tokenizer=tokenizer, device=device, dtype=dtype, backend=backend)
    assert not isinstance(settings, GenerateConfig)
    if kind == "openai":
        return OpenAICaptioner(model, settings or ChatConfig(), server or ServerConfig())
    return HfCaptioner(model, settings or ChatConfig(), trust_remote_code=trust_remote_code, device=device, dtype=dtype)


def captioner_fingerprint(spec: str, tokenizer: str | None = None, trust_remote_code: bool = False) -> str:
    """Fingerprint of the captioner that `spec` names, without loading it."""
    kind, model = _parse(spec)
    if kind == "openai":
        return openai_fingerprint(model)
    return hf_fingerprint(model, trust_remote_code) if kind == "hf" else fingerprint(model, tokenizer)


def kind_of(spec: str) -> Kind:
    """Which of our captioners `spec` names: all but "blip" take a `ChatConfig`."""
    return _parse(spec)[0]


def _parse(spec: str) -> tuple[Kind, str]:
    """Kind, and the model's name or path."""
    kind, colon, model = spec.partition(":")
    if (kind == "hf" or kind == "openai") and model:
        return kind, model
    if colon and re.fullmatch(r"[A-Za-z_]\w+", kind) and not Path(spec).exists():
        raise ValueError(f"'{spec}' is not a captioner; give {ACCEPTED}.")
    return "blip", spec
