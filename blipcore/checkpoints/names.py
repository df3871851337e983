"""Tensor names and sizes of official and Hugging Face state dicts, and their translation to blipcore's and back.

One table with the names in all three formats serves both directions. `load` and `save` access the files.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig

# blipcore's name, the official name ("": the same), Hugging Face's name ("": the official one).
#   #       the layer number                   *     weight and bias
#   {a,b}   tensors stacked into one           |     another name of the same tensor
#   {text}  every text stack of the file
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
# blipcore's names of the queues; official retrieval files call the last one ptr_queue.
QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr")
# role -> text stack of a file
TEXT_STACKS = {"decode": "text_decoder.bert", "encode": "text_encoder"}
# Tensors that a file may lack -> initial value. Official ITM inference files and Hugging Face files have no
# temperature, which only training uses.
OPTIONAL_TENSORS = {"temp": 0.07}

_TABLE = {name: (official or name, hf or official or name) for name, official, hf in NAMES}
_ANSWER_DECODER = "answer_decoder."
# Of decoders that share less with the encoder than BLIP's.
_SEPARATE_DECODER = re.compile(r"\.decode_(cross|ffn|embeddings)\.")
_LAYER = re.compile(r"\.(\d+)\.")
_MERGE_LAYER = re.compile(r"\.(\d+)\.crossattention\.output\.merge_layer\.")
_STACKED = re.compile(r"\{(\w+(?:,\w+)+)\}")


def official_names(name: str, roles: Sequence[str] = ("encode", "decode"), hf: bool = False) -> list[tuple[str, ...]]:
    """Return the names of blipcore's tensor `name` in an official (or Hugging Face) file with text stacks for `roles`.

    Each tuple holds the aliases of one of the file's tensors that are stacked in it.
    """
    if name.startswith(_ANSWER_DECODER):
        # The answer decoder of a VQA model is the file's decoder, as "text" is a captioner's.
        name, roles = name.replace(_ANSWER_DECODER, "text.", 1), ["decode"]
    key, layer = _LAYER.sub(".#.", name), _LAYER.search(name)
    stem, _, leaf = key.rpartition(".")
    pattern = _TABLE[key if key in _TABLE else f"{stem}.*"][hf]
    pattern = pattern.replace("*", leaf).replace("#", layer[1] if layer else "")
    stacked = _STACKED.search(pattern)
    parts = [pattern.replace(stacked[0], word) for word in stacked[1].split(",")] if stacked else [pattern]
    stacks = [stack for role, stack in TEXT_STACKS.items() if role in roles]
    names = []
    for part in parts:
        aliases = [alias for alias in part.split("|") if "decode" in roles or not alias.startswith("text_decoder")]
        expanded = [[alias.replace("{text}", s) for s in stacks] if "{text}" in alias else [alias] for alias in aliases]
        names.append(tuple(alias for group in expanded for alias in group))
    return names


def to_official(state: Mapping[str, Tensor], hf: bool = False) -> dict[str, Tensor]:
    """Return a blipcore state dict under the official names, or Hugging Face's; the inverse of `from_official`.

    Queues and "momentum.…" entries are renamed too. A shared tensor has each of its names. Raises ValueError if the
    text roles share other parts than BLIP's.
    """
    has_decoder = any(name.endswith("lm_head.bias") for name in state)
    shares_attention = has_decoder and not any(".decode.qkv." in name for name in state)
    if shares_attention or any(_SEPARATE_DECODER.search(name) for name in state):
        raise ValueError(
            "Official and Hugging Face files hold models that share all but self-attention; a model trained with "
            "another text.share has no such file."
        )
    roles = [role for role in TEXT_STACKS if any(name.startswith("text.") and f".{role}." in name for name in state)]
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in QUEUES:
            out["ptr_queue" if name == "queue_ptr" and "idx_queue" in state else name] = tensor
            continue
        if hf and name in OPTIONAL_TENSORS:
            continue
        is_momentum = name.startswith("momentum.")
        parts = official_names(name.removeprefix("momentum."), ["encode"] if is_momentum else roles, hf)
        chunks = tensor.chunk(len(parts)) if len(parts) > 1 else [tensor]
        for aliases, rows in zip(parts, chunks, strict=True):
            out.update({_momentum_name(alias) if is_momentum else alias: rows for alias in aliases})
    if not hf:
        # Buffers of the official modules.
        for stack in ("text_encoder", "text_encoder_m", "text_decoder.bert"):
            table = out.get(f"{stack}.embeddings.position_embeddings.weight")
            if table is not None:
                out[f"{stack}.embeddings.position_ids"] = torch.arange(len(table))[None]
    return out


def _momentum_name(name: str) -> str:
    group, dot, rest = name.partition(".")
    return f"{group}_m{dot}{rest}"


def split_training_state(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Split an official state dict into student, momentum copy (under the student's names) and queues with pointer."""
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


def from_official(state: Mapping[str, Tensor], config: BlipConfig, path: object, hf: bool = False) -> dict[str, Tensor]:
    """Return an official (or Hugging Face) state dict under blipcore's names.

    Raises ValueError unless its tensors are those of a model of `config`; `path` is for the message.
    """
    out: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    used: set[str] = set()
    for name, shape in tensor_shapes(config).items():
        parts = official_names(name, config.text.roles, hf)
        sources = []
        for aliases in parts:
            existing = [alias for alias in aliases if alias in state]
            used.update(existing)
            sources += existing[:1]
            if not existing and name not in OPTIONAL_TENSORS:
                missing.append(aliases[0])
            for alias in existing[1:]:
                if not torch.equal(state[existing[0]], state[alias]):
                    raise ValueError(f"{path}: {existing[0]} and {alias} differ, but in BLIP they are one tensor.")
        part_shape = (shape[0] // len(parts), *shape[1:]) if shape else ()
        wrong = [
            _shape_mismatch(source, state[source].shape, part_shape)
            for source in sources
            if state[source].shape != part_shape
        ]
        misshapen += wrong
        if len(sources) == len(parts) and not wrong:
            out[name] = torch.cat([state[source] for source in sources]) if len(sources) > 1 else state[sources[0]]
        elif not sources and name in OPTIONAL_TENSORS:
            out[name] = torch.tensor(OPTIONAL_TENSORS[name])
    unexpected = [source for source in state if source not in used and not source.endswith(".position_ids")]
    require_fit(path, missing, unexpected, misshapen)
    return out


def tensor_shapes(config: BlipConfig) -> dict[str, torch.Size]:
    """Return the name and shape of every tensor of a model."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Blip(config).state_dict().items()}


def require_same(
    path: object,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    target: str = "a BLIP model of its config",
) -> None:
    """Raise ValueError unless `state`, read from `path`, has these names and shapes."""
    require_fit(
        path,
        missing=[name for name in shapes if name not in state],
        unexpected=[name for name in state if name not in shapes],
        misshapen=[
            _shape_mismatch(name, state[name].shape, shape)
            for name, shape in shapes.items()
            if name in state and state[name].shape != shape
        ],
        target=target,
    )


def require_fit(
    path: object,
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Sequence[str],
    target: str = "a BLIP model of its config",
) -> None:
    """Raise ValueError with three names of each list unless all lists are empty."""
    problems = []
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{kind}: {', '.join(names[:3])}{more}")
    if problems:
        raise ValueError(f"The tensors in {path} do not make {target}: {'; '.join(problems)}.")


def _shape_mismatch(name: str, shape: Sequence[int], expected: Sequence[int]) -> str:
    return f"{name} {tuple(shape)} for {tuple(expected)}"


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
        raise ValueError(f"{path} holds no BLIP model: it has no image encoder with a text encoder or decoder.")
    if "cls_head" in groups:
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
