"""The prompt of an `hf:` captioner: that of its family's pages, unless another one is set; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blipcore.io.hub import read_json_object
from capfilt.caption.chat import ChatConfig
from capfilt.vlm.hf_files import find_folders

# Prompts of the models' own pages, for families that continue a text or obey one task token instead of an instruction.
PROMPTS = {
    "blip": "",
    "blip-2": "",
    "florence2": "<CAPTION>",
    "git": "",
    "kosmos-2": "An image of",
    "paligemma": "caption en",
    "pix2struct": "",
    "vision-encoder-decoder": "",
}


def hf_prompt(model: str, prompt: str, trust_remote_code: bool = False) -> str:
    """Return the prompt that a model is given: in place of the default instruction, that of `PROMPTS`."""
    if prompt != ChatConfig.prompt:
        return prompt
    folder = find_folders(model, trust_remote_code).base
    family = read_json_object(folder / "config.json").get("model_type")
    if family == "pix2struct" and _draws_header(folder):
        return prompt
    return PROMPTS.get(family, prompt) if isinstance(family, str) else prompt


def _draws_header(folder: Path) -> bool:
    """Return whether a Pix2Struct model reads the prompt as a header drawn above the picture."""
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings |= read_json_object(folder / name)
    nested = settings.get("image_processor")
    return bool(settings.get("is_vqa") or (isinstance(nested, dict) and nested.get("is_vqa")))
