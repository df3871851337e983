"""Parts and sizes of a model, from the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from blipcore.checkpoints.names import TEXT_STACKS
from blipcore.model.config import BlipConfig

_MERGE_LAYER = re.compile(r"\.(\d+)\.crossattention\.output\.merge_layer\.")


def tensor_shape(state: Mapping[str, Tensor], name: str, dimensions: int, path: object) -> torch.Size:
    """Return the shape of a tensor. Raises ValueError unless it exists with `dimensions` dimensions above 0."""
    if name not in state:
        raise ValueError(f"{path} lacks the tensor {name}.")
    if state[name].ndim != dimensions or not state[name].numel():
        shape = tuple(state[name].shape)
        raise ValueError(f"{name} in {path} has the shape {shape}; it must have {dimensions} dimensions above 0.")
    return state[name].shape


def detect_parts(state: Mapping[str, Tensor], path: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return text roles and heads of an official or Hugging Face state dict, by its groups of tensors."""
    groups = {name.partition(".")[0] for name in state}
    if not groups & {"text_encoder", "text_decoder"} or not groups & {"visual_encoder", "vision_model"}:
        known = f"; its tensors are in {', '.join(sorted(groups)[:6])}" if groups else ""
        raise ValueError(f"{path} holds no BLIP model: it has no image encoder with a text encoder or decoder{known}.")
    if "cls_head" in groups:
        if not any(".crossattention.self0." in name for name in state):
            raise ValueError(f"{path} is LAVIS's classification model, for which there is no task here.")
        return ("encode",), ("nlvr",)
    if {"text_encoder", "text_decoder"} <= groups and "vision_proj" not in groups:
        # VQA's encoder and decoder share nothing.
        return ("encode",), ("vqa",)
    roles = tuple(role for role in ("encode", "decode") if TEXT_STACKS[role].partition(".")[0] in groups)
    return roles, tuple(head for head, group in (("itc", "vision_proj"), ("itm", "itm_head")) if group in groups)


def official_config(state: Mapping[str, Tensor], overrides: Mapping[str, Any], path: object) -> BlipConfig:
    """Return the config of an official state dict from its tensors and `overrides`; heads default to 64 channels."""
    roles, heads = detect_parts(state, path)
    stack = TEXT_STACKS[roles[-1]]

    def shape(name: str, dimensions: int) -> torch.Size:
        return tensor_shape(state, name, dimensions, path)

    def depth(prefix: str) -> int:
        return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})

    width, _, patch, _ = shape("visual_encoder.patch_embed.proj.weight", 4)
    side = round((shape("visual_encoder.pos_embed", 3)[1] - 1) ** 0.5)
    hidden, text_width = shape(f"{stack}.encoder.layer.0.intermediate.dense.weight", 2)
    vision: dict[str, Any] = {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "depth": depth("visual_encoder.blocks."),
        "mlp_ratio": shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0] / width,
    }
    text: dict[str, Any] = {
        "vocab_size": shape(f"{stack}.embeddings.word_embeddings.weight", 2)[0],
        "width": text_width,
        "depth": depth(f"{stack}.encoder.layer."),
        "hidden": hidden,
        "max_positions": shape(f"{stack}.embeddings.position_embeddings.weight", 2)[0],
        "encoder_width": width,
        "roles": roles,
    }
    if "nlvr" in heads:
        merging = [int(match[1]) for match in map(_MERGE_LAYER.search, state) if match]
        text["merge_from"] = min(merging, default=text["depth"])
    for section, sizes in (("vision", vision), ("text", text)):
        for key, value in overrides.get(section, {}).items():
            if sizes.setdefault(key, value) != value:
                raise ValueError(f"{path} has {section} {key} {sizes[key]}, not {value}: leave out this override.")
        if "heads" not in sizes and sizes["width"] % 64:
            raise ValueError(
                f"{path} does not tell the number of {section} heads, and its width {sizes['width']} is no multiple of "
                f"64: make a blipcore folder of it with `capfilt convert --set model.{section}.heads=N`."
            )
        sizes.setdefault("heads", sizes["width"] // 64)
    embed_dim = {"embed_dim": shape("vision_proj.weight", 2)[0]} if "itc" in heads else {}
    return BlipConfig.from_dict({"vision": vision, "text": text, "heads": heads, **embed_dim})
