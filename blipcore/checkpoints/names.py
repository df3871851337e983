"""Tensor names and sizes of official and Hugging Face state dicts, and their translation to blipcore's and back.

One table with the names in all three formats serves both directions. `load` and `save` access the files.
"""

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blipcore.io.messages import shorten
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig

logger = logging.getLogger(__name__)

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


# The first tensor of the image encoder, under the official name and under Hugging Face's.
_FIRST_TENSORS = ("visual_encoder.patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight")


def remove_prefix(state: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """Return the tensors of the model without a prefix of all their names, such as Lightning's "model.".

    Other tensors, such as those of a loss, are left out and named in the log. Raises ValueError for several models.
    """
    prefixes = {name.removesuffix(first) for first in _FIRST_TENSORS for name in state if name.endswith("." + first)}
    if not prefixes or any(first in state for first in _FIRST_TENSORS):
        return dict(state)
    if len(prefixes) > 1:
        raise ValueError(
            f"{path} holds several models, under the prefixes {', '.join(sorted(prefixes))}: save one of them alone."
        )
    [prefix] = prefixes
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        logger.warning("%s: %s beside the model '%s' are left out.", path, shorten(others), prefix.rstrip("."))
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def from_official(
    state: Mapping[str, Tensor],
    config: BlipConfig,
    path: object,
    hf: bool = False,
    shapes: Mapping[str, torch.Size] | None = None,
) -> dict[str, Tensor]:
    """Return an official (or Hugging Face) state dict under blipcore's names.

    Raises ValueError unless its tensors are those of a model of `config`, or of the given `shapes`; `path` is for the
    message.
    """
    out: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    used: set[str] = set()
    for name, shape in (shapes or tensor_shapes(config)).items():
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
    for source in used:
        if not state[source].is_floating_point():
            raise ValueError(
                f"{path}: {source} holds {state[source].dtype}, as in a quantised model; use the original weights."
            )
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
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{kind}: {shorten(names)}" for kind, names in lists if names]
    if problems:
        raise ValueError(f"The tensors in {path} do not make {target}: {'; '.join(problems)}.")


def _shape_mismatch(name: str, shape: Sequence[int], expected: Sequence[int]) -> str:
    return f"{name} {tuple(shape)} for {tuple(expected)}"
