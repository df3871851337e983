"""Opens a captioner by its name on the command line: a BLIP checkpoint, `hf:MODEL` or `openai:MODEL`.

A captioner's file, and with it torch, is imported only when the captioner is opened.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from blipcore.checkpoints.numerics import Numerics
from blipcore.device import Backend, Dtype
from blipcore.generate.config import GenerateConfig
from blipcore.io.hub import model_fingerprint
from capfilt.caption.captioner import Captioner
from capfilt.caption.chat import ChatConfig
from capfilt.caption.server import OpenAICaptioner
from capfilt.vlm.server import ServerConfig, openai_fingerprint

ACCEPTED = (
    "a blipcore checkpoint folder, an official BLIP .pth file, a Hugging Face BLIP folder or hub id, "
    "hf:MODEL for any image-text-to-text model of transformers, or openai:MODEL for one behind a server"
)

CaptionerKind = Literal["blip", "hf", "openai"]


def open_captioner(
    spec: str,
    settings: GenerateConfig | ChatConfig | None = None,
    *,
    tokenizer: str | None = None,
    numerics: Numerics = "official",
    merge_tokens: int = 0,
    server: ServerConfig | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> Captioner:
    """Load the captioner that `spec` names. BLIP takes a `GenerateConfig`, the others a `ChatConfig`.

    Raises ValueError if `spec` names no captioner.
    """
    kind, model = _parse(spec)
    if kind == "blip":
        from capfilt.caption.blip import BlipCaptioner

        assert not isinstance(settings, ChatConfig)
        return BlipCaptioner(
            model,
            settings,
            tokenizer=tokenizer,
            numerics=numerics,
            merge_tokens=merge_tokens,
            device=device,
            dtype=dtype,
            backend=backend,
        )
    assert not isinstance(settings, GenerateConfig)
    if kind == "openai":
        return OpenAICaptioner(model, settings or ChatConfig(), server or ServerConfig())
    from capfilt.caption.hf import HfCaptioner

    return HfCaptioner(model, settings or ChatConfig(), trust_remote_code=trust_remote_code, device=device, dtype=dtype)


def captioner_fingerprint(spec: str, tokenizer: str | None = None, trust_remote_code: bool = False) -> str:
    """Return the fingerprint of the captioner that `spec` names, without loading it."""
    kind, model = _parse(spec)
    if kind == "openai":
        return openai_fingerprint(model)
    if kind == "hf":
        from capfilt.vlm.hf_files import hf_fingerprint

        return hf_fingerprint(model, trust_remote_code)
    return model_fingerprint(model, tokenizer)


def recorded_settings(
    spec: str, settings: GenerateConfig | ChatConfig, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Return the decoding settings for a manifest, with the prompt that an `hf:` model is given."""
    kind, model = _parse(spec)
    content = asdict(settings)
    if kind == "hf":
        from capfilt.caption.hf_prompt import hf_prompt

        content["prompt"] = hf_prompt(model, content["prompt"], trust_remote_code)
    return content


def captioner_kind(spec: str) -> CaptionerKind:
    """Return the kind of captioner that `spec` names."""
    return _parse(spec)[0]


def _parse(spec: str) -> tuple[CaptionerKind, str]:
    kind, colon, model = spec.partition(":")
    if kind == "hf" and model:
        return "hf", model
    if kind == "openai" and model:
        return "openai", model
    if colon and re.fullmatch(r"[A-Za-z_]\w+", kind) and not Path(spec).exists():
        raise ValueError(f"'{spec}' is not a captioner; give {ACCEPTED}.")
    return "blip", spec
