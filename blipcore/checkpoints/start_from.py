"""Starting weights of a new model's two parts, as the paper starts from DeiT and BERT-base (section 4.1).

In: an image encoder as a state-dict file, `open_clip:ARCH/TAG`, `timm:NAME` or a hub id; a BERT-shaped text transformer
as a folder or hub id. Out: a `Start`, which says the sizes of its part and is then loaded into it. What BERT does not
have is new: cross-attention, [DEC] and [ENC], and the LM head where the folder holds none. Whatever else is missing,
left over or of another size is an error that names it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blipcore.checkpoints.files import read_tensors, read_weights
from blipcore.checkpoints.names import official_names, require_fit, require_same, shape_in
from blipcore.io.hub import download, locate, read_json
from blipcore.model.text import TextTransformer
from blipcore.model.vit import VisionTransformer, resize_pos_embed
from blipcore.torchvision_shim import import_open_clip, import_timm

# open_clip's names of an image tower, as regular expressions, and timm's, which are ours.
OPEN_CLIP = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
CLASSIFIERS = ("head.", "pre_logits.", "proj")  # of labels, or into CLIP's joint space
SAFETENSORS = ("model.safetensors", "open_clip_model.safetensors")  # as timm and open_clip name them on the hub
PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUActivation": "gelu"}
# What a BERT holds that BLIP has no place for, and what BLIP's body has that BERT may lack.
NOT_IN_BLIP = re.compile(
    r"^pooler\.|^cls\.seq_relationship\.|token_type_embeddings|position_ids|predictions\.decoder\."
)
DECODERS_OWN = re.compile(r"\bdecode_(?=cross\.|ffn\.|embeddings\.)")  # what another way of sharing gives it
NEW = re.compile(r"\.cross\.|^text\.lm_head\.")


@dataclass
class Start:
    """Weights of one part under our names, and what its config must say."""

    source: str
    sizes: dict[str, Any]  # must agree with the model's
    traits: dict[str, Any]  # LayerNorm eps and the like, which the model takes over
    state: dict[str, Tensor]

    def require(self, config: Any) -> None:
        """ValueError that names the sizes of `config` that are not these."""
        wrong = {name: value for name, value in self.sizes.items() if getattr(config, name) != value}
        if wrong:
            has = ", ".join(f"{name} {value:g}" for name, value in wrong.items())
            wants = ", ".join(f"{name} {getattr(config, name):g}" for name in wrong)
            raise ValueError(
                f"{self.source} has {has}, and the model is to have {wants}: give the preset of its size, or none"
            )


def image_start(source: str) -> Start:
    """An image encoder's weights: a state-dict file, `open_clip:ARCH/TAG`, `timm:NAME` or a hub id of either."""
    traits: dict[str, Any] = {}
    if source.startswith(("open_clip:", "timm:")):
        kind, _, name = source.partition(":")
        tower = _open_clip_tower(name) if kind == "open_clip" else _timm_tower(name)
        state, traits = tower.state_dict(), _traits(tower)
    else:
        state = read_tensors(_weights_of(source))
    state = _timm_names(state)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in state:
            raise ValueError(f"{source} holds no ViT with a class token and square patches: it lacks {name}")
    width, _, _, patch = shape_in(state, "patch_embed.proj.weight", 4, source)
    hidden, _ = shape_in(state, "blocks.0.mlp.fc1.weight", 2, source)
    if shape_in(state, "pos_embed", 3, source)[2] != width:
        raise ValueError(f"{source} has positions of another width than its patches have")
    state.setdefault("patch_embed.proj.bias", torch.zeros(width))  # CLIP's has none
    sizes = {
        "width": width,
        "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "patch_size": patch,
        "mlp_ratio": hidden / width,
    }
    return Start(source, sizes, {"pre_norm": "norm_pre.weight" in state} | traits, state)


def load_image_start(encoder: VisionTransformer, start: Start) -> None:
    """Load an image encoder's weights, its position table resized to the encoder's picture."""
    start.require(encoder.config)
    config, state = encoder.config, dict(start.state)
    state["pos_embed"] = resize_pos_embed(state["pos_embed"].float(), config.image_size, config.patch_size)
    require_same(start.source, state, encoder.state_dict(), "image encoder asked for")
    encoder.load_state_dict(state)


def text_start(source: str) -> Start:
    """A text transformer's weights: a BERT folder or hub id (BertModel, BertForMaskedLM, BertForPreTraining)."""
    folder = locate(source)
    raw, state = read_json(folder / "config.json"), read_weights(folder)
    if raw.get("model_type", "bert") != "bert" or raw.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{source} is a {raw.get('model_type')!r} model; the text transformer starts from a BERT")
    if raw.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"{source} uses the activation {raw['hidden_act']!r}; BLIP is built with 'gelu'")
    state = {_renamed(name.removeprefix("bert.")): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not NOT_IN_BLIP.search(name)}
    for name in ("embeddings.position_embeddings.weight", "encoder.layer.0.intermediate.dense.weight"):
        if name not in state:
            raise ValueError(f"{source} holds no BERT: it lacks {name}")
    hidden, width = shape_in(state, "encoder.layer.0.intermediate.dense.weight", 2, source)
    sizes = {
        "width": width,
        "depth": len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")}),
        "heads": raw.get("num_attention_heads", 12),
        "hidden": hidden,
    }
    rows, _ = shape_in(state, "embeddings.position_embeddings.weight", 2, source)
    traits = {"eps": raw.get("layer_norm_eps", 1e-12), "max_positions": rows}
    return Start(source, sizes, traits, state)


@torch.no_grad()
def load_text_start(text: TextTransformer, start: Start) -> None:
    """Load BERT's weights into the body and both self-attentions; [DEC], [ENC] and the cross-attention stay new.

    A shorter position table takes the first rows. The vocabulary must be BERT's, with or without [DEC] and [ENC].
    """
    start.require(text.config)
    used: set[str] = set()
    missing, misshapen, own = [], [], text.state_dict()
    for name, tensor in own.items():
        name = DECODERS_OWN.sub("", name)
        bert = [_bert_name(aliases[0]) for aliases in official_names(f"text.{name}")]
        found = [start.state[part] for part in bert if part in start.state]
        used.update(bert)
        if len(found) < len(bert):
            missing += [] if NEW.search(f"text.{name}") else [part for part in bert if part not in start.state]
            continue
        rows = torch.cat(found) if len(found) > 1 else found[0]
        count = len(tensor)
        if name == "embeddings.position.weight":
            rows = rows[:count]
        elif name in ("embeddings.word.weight", "lm_head.bias"):
            if not count - 2 <= len(rows) <= count:
                raise ValueError(
                    f"{start.source} has {len(rows)} word embeddings, and the tokenizer {count} tokens with [DEC] and "
                    "[ENC]: start from the vocabulary that it was trained on"
                )
            count = len(rows)
        if rows.shape != tensor[:count].shape:
            misshapen.append(f"{bert[0]} {tuple(rows.shape)} for {tuple(tensor.shape)}")
        else:
            tensor[:count].copy_(rows)
    require_fit(
        start.source,
        missing,
        [name for name in start.state if name not in used],
        misshapen,
        "text transformer asked for",
    )


def _renamed(name: str) -> str:
    """LayerNorm's parameters as torch calls them; the TensorFlow code of BERT said gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _bert_name(official: str) -> str:
    for stack in ("text_decoder.bert.", "text_encoder.", "text_decoder."):
        official = official.removeprefix(stack)
    return official


def _weights_of(source: str) -> Path:
    """The file of weights that `source` is, holds, or has on the hub; a pickle only where there is nothing else."""
    path = Path(source)
    if not path.exists():
        path = download(source, SAFETENSORS)
        if not any(path.glob("*.safetensors")):
            path = download(source, PICKLES)
    if path.is_file():
        return path
    for name in (*SAFETENSORS, *PICKLES):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"{source} holds no weights of an image encoder: none of {', '.join(SAFETENSORS + PICKLES)}"
    )


def _timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of a timm or open_clip state dict under timm's names, without its classifier."""
    for prefix in ("visual.trunk.", "visual."):
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    out = {}
    for name, tensor in state.items():
        for pattern, timm in OPEN_CLIP:
            name = re.sub(pattern, timm, name)
        if not name.startswith(CLASSIFIERS):
            out[name] = tensor
    if "cls_token" in out:  # open_clip's have no leading dimensions
        tables = [name for name in ("cls_token", "pos_embed") if name in out and out[name].numel() and out[name].ndim]
        out |= {name: out[name].reshape(1, -1, out[name].shape[-1]) for name in tables}
    return out


def _timm_tower(name: str) -> nn.Module:
    timm = import_timm()
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"timm has no pretrained model {name!r} ({error}): timm.list_pretrained() names them"
        ) from error


def _open_clip_tower(spec: str) -> nn.Module:
    open_clip = import_open_clip()
    arch, _, tag = spec.partition("/")
    if arch not in open_clip.list_models() or not tag:
        raise ValueError(
            f"open_clip:{spec} is no model; write open_clip:ARCH/TAG as open_clip.list_pretrained() has it"
        )
    tower = open_clip.create_model(arch, pretrained=tag).visual
    return getattr(tower, "trunk", tower)


def _traits(tower: nn.Module) -> dict[str, Any]:
    """What a ViT's tensors do not tell: heads, LayerNorm eps, activation."""
    names = [type(module).__name__ for module in tower.modules()]
    known = [ACTIVATIONS[name] for name in names if name in ACTIVATIONS]
    if not known:
        raise ValueError(f"{type(tower).__name__} has none of the activations {', '.join(ACTIVATIONS)}")
    heads = next(module.num_heads for module in tower.modules() if hasattr(module, "num_heads"))
    eps = next(module.eps for module in tower.modules() if isinstance(module, nn.LayerNorm))
    return {"heads": heads, "eps": eps, "activation": known[0]}
