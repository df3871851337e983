"""BLIP in other people's words: tensor names and sizes of official and Hugging Face state dicts, and the way back.

In: a state dict as a foreign file holds it. Out: a `BlipConfig` and the same tensors under our names, or one sentence
that names what does not fit. One table holds every name in all three dialects and serves both directions. No files are
touched here; `convert` does that.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig

# Ours, official ("" = same as ours), Hugging Face ("" = same as official). # = layer number, * = weight and bias,
# {a,b} = rows stacked into one tensor, {text} = every text stack of the file, | = another name of the same tensor.
NAMES: tuple[tuple[str, str, str], ...] = (
    ("visual_encoder.cls_token", "", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.*", "", "vision_model.embeddings.patch_embedding.*"),
    ("visual_encoder.blocks.#.norm1.*", "", "vision_model.encoder.layers.#.layer_norm1.*"),
    ("visual_encoder.blocks.#.attn.qkv.*", "", "vision_model.encoder.layers.#.self_attn.qkv.*"),
    ("visual_encoder.blocks.#.attn.proj.*", "", "vision_model.encoder.layers.#.self_attn.projection.*"),
    ("visual_encoder.blocks.#.norm2.*", "", "vision_model.encoder.layers.#.layer_norm2.*"),
    ("visual_encoder.blocks.#.mlp.fc1.*", "", "vision_model.encoder.layers.#.mlp.fc1.*"),
    ("visual_encoder.blocks.#.mlp.fc2.*", "", "vision_model.encoder.layers.#.mlp.fc2.*"),
    ("visual_encoder.norm.*", "", "vision_model.post_layernorm.*"),
    (
        "text.embeddings.word.weight",
        "{text}.embeddings.word_embeddings.weight|text_decoder.cls.predictions.decoder.weight",
        "",
    ),
    ("text.embeddings.position.weight", "{text}.embeddings.position_embeddings.weight", ""),
    ("text.embeddings.norm.*", "{text}.embeddings.LayerNorm.*", ""),
    ("text.layers.#.encode.qkv.*", "text_encoder.encoder.layer.#.attention.self.{query,key,value}.*", ""),
    ("text.layers.#.encode.out.*", "text_encoder.encoder.layer.#.attention.output.dense.*", ""),
    ("text.layers.#.encode.norm.*", "text_encoder.encoder.layer.#.attention.output.LayerNorm.*", ""),
    ("text.layers.#.decode.qkv.*", "text_decoder.bert.encoder.layer.#.attention.self.{query,key,value}.*", ""),
    ("text.layers.#.decode.out.*", "text_decoder.bert.encoder.layer.#.attention.output.dense.*", ""),
    ("text.layers.#.decode.norm.*", "text_decoder.bert.encoder.layer.#.attention.output.LayerNorm.*", ""),
    ("text.layers.#.cross.query.*", "{text}.encoder.layer.#.crossattention.self.query.*", ""),
    ("text.layers.#.cross.kv.*", "{text}.encoder.layer.#.crossattention.self.{key,value}.*", ""),
    ("text.layers.#.cross.out.*", "{text}.encoder.layer.#.crossattention.output.dense.*", ""),
    ("text.layers.#.cross.first.query.*", "{text}.encoder.layer.#.crossattention.self0.query.*", ""),
    ("text.layers.#.cross.first.kv.*", "{text}.encoder.layer.#.crossattention.self0.{key,value}.*", ""),
    ("text.layers.#.cross.first.out.*", "{text}.encoder.layer.#.crossattention.output.dense0.*", ""),
    ("text.layers.#.cross.second.query.*", "{text}.encoder.layer.#.crossattention.self1.query.*", ""),
    ("text.layers.#.cross.second.kv.*", "{text}.encoder.layer.#.crossattention.self1.{key,value}.*", ""),
    ("text.layers.#.cross.second.out.*", "{text}.encoder.layer.#.crossattention.output.dense1.*", ""),
    ("text.layers.#.cross.merge.*", "{text}.encoder.layer.#.crossattention.output.merge_layer.*", ""),
    ("text.layers.#.cross.norm.*", "{text}.encoder.layer.#.crossattention.output.LayerNorm.*", ""),
    ("text.layers.#.ffn.up.*", "{text}.encoder.layer.#.intermediate.dense.*", ""),
    ("text.layers.#.ffn.down.*", "{text}.encoder.layer.#.output.dense.*", ""),
    ("text.layers.#.ffn.norm.*", "{text}.encoder.layer.#.output.LayerNorm.*", ""),
    ("text.lm_head.dense.*", "text_decoder.cls.predictions.transform.dense.*", ""),
    ("text.lm_head.norm.*", "text_decoder.cls.predictions.transform.LayerNorm.*", ""),
    ("text.lm_head.bias", "text_decoder.cls.predictions.bias|text_decoder.cls.predictions.decoder.bias", ""),
    ("vision_proj.*", "", ""),
    ("text_proj.*", "", ""),
    ("itm_head.*", "", ""),
    ("cls_head.#.*", "", ""),
    ("temp", "", ""),
)
QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr")  # ours; retrieval files say ptr_queue

_TABLE = {ours: (official or ours, hf or official or ours) for ours, official, hf in NAMES}
_STACKS = {"decode": "text_decoder.bert", "encode": "text_encoder"}  # the text stack of a file that plays a role
# All that a file may lack, and what stands in: ITM inference and Hugging Face files have no temperature, which scales
# nothing but training logits.
MAY_LACK = {"temp": 0.07}
CLAIMED = "BLIP model it claims to be"
_ANSWER = "answer_decoder."
_OWN = re.compile(r"\.decode_(cross|ffn|embeddings)\.")  # of the decoder, in models that share less than BLIP
_LAYER = re.compile(r"\.(\d+)\.")
_MERGE = re.compile(r"\.(\d+)\.crossattention\.output\.merge_layer\.")
_STACKED = re.compile(r"\{(\w+(?:,\w+)+)\}")


def official_names(ours: str, roles: Sequence[str] = ("encode", "decode"), hf: bool = False) -> list[tuple[str, ...]]:
    """Names of our tensor `ours` in an official (or HF) file: one tuple of aliases for each part stacked in it."""
    if ours.startswith(_ANSWER):  # VQA's second body is the file's decoder, as "text" is a captioner's
        ours, roles = ours.replace(_ANSWER, "text.", 1), ["decode"]
    key, layer = _LAYER.sub(".#.", ours), _LAYER.search(ours)
    stem, _, leaf = key.rpartition(".")
    pattern = (
        _TABLE[key if key in _TABLE else f"{stem}.*"][hf].replace("*", leaf).replace("#", layer[1] if layer else "")
    )
    stacked = _STACKED.search(pattern)
    parts = [pattern.replace(stacked[0], word) for word in stacked[1].split(",")] if stacked else [pattern]
    stacks = [stack for role, stack in _STACKS.items() if role in roles]
    return [
        tuple(
            alias.replace("{text}", stack)
            for alias in part.split("|")
            for stack in (stacks if "{text}" in alias else [""])
            if "decode" in roles or not alias.startswith("text_decoder")
        )
        for part in parts
    ]


def to_official(state: Mapping[str, Tensor], hf: bool = False) -> dict[str, Tensor]:
    """Our state dict under the official names, or Hugging Face's; the inverse of `translate`.

    Queues and "momentum.…" entries become the official ones. A shared tensor is written under each of its names.
    ValueError for a model whose roles share something else than the official ones do.
    """
    decodes = any(name.endswith("lm_head.bias") for name in state)
    shares_attention = decodes and not any(".decode.qkv." in name for name in state)
    if shares_attention or any(_OWN.search(name) for name in state):
        raise ValueError(
            "official and Hugging Face files hold models that share all but self-attention: one trained with another "
            "text.share cannot be written as such"
        )
    roles = [role for role in _STACKS if any(name.startswith("text.") and f".{role}." in name for name in state)]
    out: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        name = ours.removeprefix("momentum.")
        if ours in QUEUES:
            out["ptr_queue" if ours == "queue_ptr" and "idx_queue" in state else ours] = tensor
        elif not (hf and ours in MAY_LACK):
            parts = official_names(name, roles if name == ours else ["encode"], hf)
            for aliases, rows in zip(parts, tensor.chunk(len(parts)) if len(parts) > 1 else [tensor], strict=True):
                out.update({alias if name == ours else _momentum_name(alias): rows for alias in aliases})
    if not hf:  # buffers of the official modules
        for stack in ("text_encoder", "text_encoder_m", "text_decoder.bert"):
            if (table := out.get(f"{stack}.embeddings.position_embeddings.weight")) is not None:
                out[f"{stack}.embeddings.position_ids"] = torch.arange(len(table))[None]
    return out


def _momentum_name(name: str) -> str:
    group, dot, rest = name.partition(".")
    return f"{group}_m{dot}{rest}"


def split_training_state(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """An official state dict as (student, momentum copy under the student's names, queues and pointer)."""
    student, momentum, queues = {}, {}, {}
    for name, tensor in state.items():
        group, dot, rest = name.partition(".")
        if name in (*QUEUES, "ptr_queue"):
            queues["queue_ptr" if name == "ptr_queue" else name] = tensor
        elif group.endswith("_m"):
            momentum[f"{group[:-2]}{dot}{rest}"] = tensor
        else:
            student[name] = tensor
    return student, momentum, queues


def translate(state: Mapping[str, Tensor], config: BlipConfig, path: object, hf: bool = False) -> dict[str, Tensor]:
    """A foreign state dict under our names; ValueError unless it holds exactly the tensors that `config` needs."""
    out: dict[str, Tensor] = {}
    missing, misshapen = [], []
    used: set[str] = set()
    for ours, shape in shapes(config).items():
        parts = official_names(ours, config.text.roles, hf)
        found = []
        for aliases in parts:
            present = [alias for alias in aliases if alias in state]
            used.update(present)
            found += present[:1]
            if not present and ours not in MAY_LACK:
                missing.append(aliases[0])
            for alias in present[1:]:
                if not torch.equal(state[present[0]], state[alias]):
                    raise ValueError(f"{path}: {present[0]} and {alias} differ, but in BLIP they are one tensor")
        part_shape = (shape[0] // len(parts), *shape[1:]) if shape else ()
        wrong = [
            f"{name} {tuple(state[name].shape)} for {part_shape}" for name in found if state[name].shape != part_shape
        ]
        misshapen += wrong
        if len(found) == len(parts) and not wrong:
            out[ours] = torch.cat([state[name] for name in found]) if len(found) > 1 else state[found[0]]
        elif not found and ours in MAY_LACK:
            out[ours] = torch.tensor(MAY_LACK[ours])
    unexpected = [name for name in state if name not in used and not name.endswith(".position_ids")]
    require_fit(path, missing, unexpected, misshapen)
    return out


def shapes(config: BlipConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor of a model."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Blip(config).state_dict().items()}


def require_same(path: object, state: Mapping[str, Tensor], own: Mapping[str, Any], what: str = CLAIMED) -> None:
    """Raise one ValueError unless `state` has the names and shapes of `own` (tensors or shapes)."""
    shape_of = {name: getattr(tensor, "shape", tensor) for name, tensor in own.items()}
    require_fit(
        path,
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        misshapen=[
            f"{name} {tuple(state[name].shape)} for {tuple(shape)}"
            for name, shape in shape_of.items()
            if name in state and state[name].shape != shape
        ],
        what=what,
    )


def require_fit(
    path: object, missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str], what: str = CLAIMED
) -> None:
    """Raise one ValueError that names what is wrong with a file's tensors, if anything is."""
    wrong = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    text = "; ".join(
        f"{kind}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for kind, names in wrong
        if names
    )
    if text:
        raise ValueError(f"the tensors in {path} do not make the {what}: {text}")


def shape_in(state: Mapping[str, Tensor], name: str, dimensions: int, path: object) -> torch.Size:
    """The shape of a tensor; ValueError unless it is there, not empty, and has so many dimensions."""
    if name not in state:
        raise ValueError(f"{path} lacks the tensor {name}")
    if state[name].ndim != dimensions or not state[name].numel():
        raise ValueError(f"{path} has {name} in the shape {tuple(state[name].shape)}, which no such model has")
    return state[name].shape


def parts_of(state: Mapping[str, Tensor], path: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Text roles and heads of a foreign state dict, told by which groups of tensors it has."""
    groups = {name.partition(".")[0] for name in state}
    if not groups & {"text_encoder", "text_decoder"} or not groups & {"visual_encoder", "vision_model"}:
        raise ValueError(f"{path} holds no BLIP model: an image encoder with a text encoder or decoder is not in it")
    if "cls_head" in groups:
        return ("encode",), ("nlvr",)
    if {"text_encoder", "text_decoder"} <= groups and "vision_proj" not in groups:
        return ("encode",), ("vqa",)  # two bodies that share nothing
    roles = tuple(role for role in ("encode", "decode") if _STACKS[role].partition(".")[0] in groups)
    return roles, tuple(head for head, group in (("itc", "vision_proj"), ("itm", "itm_head")) if group in groups)


def official_config(state: Mapping[str, Tensor], overrides: Mapping[str, Any], path: object) -> BlipConfig:
    """Config of an official state dict: sizes from its tensors, heads of 64 channels unless `overrides` has others."""
    roles, heads = parts_of(state, path)
    stack = _STACKS[roles[-1]]

    def shape(name: str, dimensions: int) -> torch.Size:
        return shape_in(state, name, dimensions, path)

    def depth(prefix: str) -> int:
        return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})

    width, _, patch, _ = shape("visual_encoder.patch_embed.proj.weight", 4)
    side = round((shape("visual_encoder.pos_embed", 3)[1] - 1) ** 0.5)
    hidden, text_width = shape(f"{stack}.encoder.layer.0.intermediate.dense.weight", 2)
    vision = {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "depth": depth("visual_encoder.blocks."),
        "mlp_ratio": shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0] / width,
    }
    text = {
        "vocab_size": shape(f"{stack}.embeddings.word_embeddings.weight", 2)[0],
        "width": text_width,
        "depth": depth(f"{stack}.encoder.layer."),
        "hidden": hidden,
        "max_positions": shape(f"{stack}.embeddings.position_embeddings.weight", 2)[0],
        "encoder_width": width,
        "roles": roles,
    }
    if "nlvr" in heads:
        merging = [int(match[1]) for name in state if (match := _MERGE.search(name))]
        text["merge_from"] = min(merging, default=text["depth"])
    for section, found in (("vision", vision), ("text", text)):
        for key, value in overrides.get(section, {}).items():
            if found.setdefault(key, value) != value:
                raise ValueError(f"{path} has {section} {key} {found[key]}, not the {value} asked for")
        if "heads" not in found and found["width"] % 64:
            raise ValueError(
                f"{path} does not tell the number of {section} heads, and width {found['width']} is no multiple of 64: "
                f"make a blipcore folder of it with `capfilt convert --set model.{section}.heads=N`"
            )
        found.setdefault("heads", found["width"] // 64)
    embed_dim = {"embed_dim": shape("vision_proj.weight", 2)[0]} if "itc" in heads else {}
    return BlipConfig.from_dict({"vision": vision, "text": text, "heads": heads, **embed_dim})
