"""Numbers in the config of a Hugging Face BLIP that differ from the code that trained the weights; no torch.

The released models were trained with 12 text heads and a LayerNorm eps of 1e-6 in the image encoder. The config files
of their conversions have an eps of 1e-5, and some 8 heads (transformers' default), which give other outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from blipcore.io.hub import locate_model, read_json_object

# Which numbers apply where they differ: the trained ones of the released models, or those of config.json.
Numerics = Literal["official", "transformers"]
# Sizes and numbers of the released models.
TEXT_WIDTH, TEXT_HEADS, VISION_EPS = 768, 12, 1e-6
# transformers' defaults for keys that config.json lacks.
DEFAULT_TEXT_HEADS, DEFAULT_VISION_EPS = 8, 1e-5


def stated_numbers(vision: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return text heads and eps of the image encoder, as the two parts of a config state them."""
    return text.get("num_attention_heads", DEFAULT_TEXT_HEADS), vision.get("layer_norm_eps", DEFAULT_VISION_EPS)


def resolve_numbers(vision: Mapping[str, Any], text: Mapping[str, Any], numerics: Numerics) -> tuple[Any, Any]:
    """Return text heads and eps of the image encoder to use.

    The numerics "official" replace the stated ones of a model with the released text width; an eps is replaced only if
    it is transformers' default.
    """
    heads, eps = stated_numbers(vision, text)
    if numerics == "transformers" or text.get("hidden_size", TEXT_WIDTH) != TEXT_WIDTH:
        return heads, eps
    return TEXT_HEADS, VISION_EPS if eps == DEFAULT_VISION_EPS else eps


def describe_numerics(path_or_id: str | Path, numerics: Numerics) -> str | None:
    """Return a sentence on the choice of numbers for a checkpoint, or None if its numbers are not in doubt."""
    path = locate_model(path_or_id)
    raw = read_json_object(path / "config.json") if path.is_dir() else {}
    vision, text = raw.get("vision_config") or {}, raw.get("text_config") or {}
    if raw.get("model_type") != "blip" or not (isinstance(vision, Mapping) and isinstance(text, Mapping)):
        return None
    stated, official = stated_numbers(vision, text), resolve_numbers(vision, text, "official")
    if stated == official:
        return None
    names = ("{} text heads", "a vision LayerNorm eps of {}")
    pairs = [(name, a, b) for name, a, b in zip(names, stated, official, strict=True) if a != b]
    stated_words, official_words = (" and ".join(name.format(pair[side]) for name, *pair in pairs) for side in (0, 1))
    if numerics == "transformers":
        return f"{path_or_id} runs with the {stated_words} of its config.json (--numerics transformers)."
    return (
        f"{path_or_id} runs with {official_words}, as the released BLIP was trained, instead of the {stated_words} of "
        "its config.json; if it was trained with those, add --numerics transformers."
    )
