"""A picture in, texts with their log-probabilities out: the `Captioner` protocol and which captioners there are.

`capfilt caption` knows the protocol alone; a captioner's file, and torch with it, comes in when it is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from blipcore.device import Backend, Dtype
from blipcore.generate.config import GenerateConfig
from blipcore.io.hub import fingerprint
from capfilt.caption.chat import Caption, ChatConfig
from capfilt.caption.server import OpenAICaptioner, ServerConfig, openai_fingerprint

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
        from capfilt.caption.blip import BlipCaptioner

        assert not isinstance(settings, ChatConfig)
        return BlipCaptioner(model, settings, tokenizer=tokenizer, device=device, dtype=dtype, backend=backend)
    assert not isinstance(settings, GenerateConfig)
    if kind == "openai":
        return OpenAICaptioner(model, settings or ChatConfig(), server or ServerConfig())
    from capfilt.caption.hf import HfCaptioner

    return HfCaptioner(model, settings or ChatConfig(), trust_remote_code=trust_remote_code, device=device, dtype=dtype)


def captioner_fingerprint(spec: str, tokenizer: str | None = None, trust_remote_code: bool = False) -> str:
    """Fingerprint of the captioner that `spec` names, without loading it."""
    kind, model = _parse(spec)
    if kind == "openai":
        return openai_fingerprint(model)
    if kind == "hf":
        from capfilt.caption.hf import hf_fingerprint

        return hf_fingerprint(model, trust_remote_code)
    return fingerprint(model, tokenizer)


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
