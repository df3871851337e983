"""Starting weights of a new model's two parts, as the paper starts from DeiT and BERT-base (section 4.1).

The image encoder starts from a state-dict file, `open_clip:ARCH/TAG`, `timm:NAME` or a hub id of either; the text
transformer from a BERT folder or hub id. BERT lacks cross-attention, [DEC] and [ENC], and some BERTs the LM head: these
start random. Any other missing, unexpected or misshapen tensor is an error that names it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blipcore.checkpoints.files import read_tensors, read_weights
from blipcore.checkpoints.names import official_names, require_fit, require_same
from blipcore.checkpoints.sizes import tensor_shape
from blipcore.io.hub import download_from_hub, locate_model, read_json_object
from blipcore.model.text import TextTransformer
from blipcore.model.vit import VisionTransformer, resize_pos_embed
from blipcore.torchvision_shim import import_open_clip, import_timm

# Patterns of open_clip's names in an image tower -> timm's names, which are blipcore's.
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
# Classifier layers, and CLIP's projection into its joint space.
CLASSIFIERS = ("head.", "pre_logits.", "proj")
# File names of timm and open_clip on the hub.
SAFETENSORS = ("model.safetensors", "open_clip_model.safetensors")
PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUActivation": "gelu"}
# BERT's tensors that BLIP lacks.
_UNUSED_IN_BLIP = re.compile(
    r"^pooler\.|^cls\.seq_relationship\.|token_type_embeddings|position_ids|predictions\.decoder\."
)
# Separate tensors of the decoder (`TextConfig.share`), which start like the encoder's.
_SEPARATE_DECODER = re.compile(r"\bdecode_(?=cross\.|ffn\.|embeddings\.)")
# Tensors that start random if the BERT lacks them.
_RANDOM_START = re.compile(r"\.cross\.|^text\.lm_head\.")


@dataclass
class StartingWeights:
    """Weights of an image encoder or a text transformer, under blipcore's (or BERT's) names."""

    source: str
    # Must equal the model's.
    sizes: dict[str, Any]
    # Adopted by the model, such as the LayerNorm eps.
    traits: dict[str, Any]
    state: dict[str, Tensor]

    def require_sizes(self, config: Any) -> None:
        """Raise ValueError unless `config` has these sizes."""
        wrong = {name: value for name, value in self.sizes.items() if getattr(config, name) != value}
        if wrong:
            actual = ", ".join(f"{name} {value:g}" for name, value in wrong.items())
            expected = ", ".join(f"{name} {getattr(config, name):g}" for name in wrong)
            raise ValueError(
                f"{self.source} has {actual}, but the model has {expected}: choose the preset of its size, or none."
            )


def read_image_encoder(source: str) -> StartingWeights:
    """Read an image encoder: a state-dict file, `open_clip:ARCH/TAG`, `timm:NAME` or a hub id of either."""
    traits: dict[str, Any] = {}
    if source.startswith(("open_clip:", "timm:")):
        library, _, name = source.partition(":")
        tower = _open_clip_tower(name) if library == "open_clip" else _timm_tower(name)
        state, traits = tower.state_dict(), _detect_traits(tower)
    else:
        state = read_tensors(_find_weights(source))
    state = _timm_names(state)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in state:
            raise ValueError(f"{source} holds no ViT with a class token and square patches: it lacks {name}.")
    width, _, _, patch = tensor_shape(state, "patch_embed.proj.weight", 4, source)
    hidden, _ = tensor_shape(state, "blocks.0.mlp.fc1.weight", 2, source)
    if tensor_shape(state, "pos_embed", 3, source)[2] != width:
        raise ValueError(f"{source} has position embeddings of another width than its patch embeddings.")
    # CLIP's patch embedding has no bias.
    state.setdefault("patch_embed.proj.bias", torch.zeros(width))
    sizes = {
        "width": width,
        "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "patch_size": patch,
        "mlp_ratio": hidden / width,
    }
    return StartingWeights(source, sizes, {"pre_norm": "norm_pre.weight" in state} | traits, state)


def load_image_encoder(encoder: VisionTransformer, start: StartingWeights) -> None:
    """Load an image encoder's weights, with the position table resized to its image size."""
    start.require_sizes(encoder.config)
    config, state = encoder.config, dict(start.state)
    state["pos_embed"] = resize_pos_embed(state["pos_embed"].float(), config.image_size, config.patch_size)
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    require_same(start.source, state, shapes, "the model's image encoder")
    encoder.load_state_dict(state)


def read_bert(source: str) -> StartingWeights:
    """Read a text transformer: a folder or hub id of a BertModel, BertForMaskedLM or BertForPreTraining."""
    folder = locate_model(source)
    raw, state = read_json_object(folder / "config.json"), read_weights(folder)
    if raw.get("model_type", "bert") != "bert" or raw.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{source} is a {raw.get('model_type')!r} model; the text transformer starts from a BERT.")
    if raw.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"{source} uses the activation {raw['hidden_act']!r}; BLIP uses 'gelu'.")
    state = {_torch_name(name.removeprefix("bert.")): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not _UNUSED_IN_BLIP.search(name)}
    for name in ("embeddings.position_embeddings.weight", "encoder.layer.0.intermediate.dense.weight"):
        if name not in state:
            raise ValueError(f"{source} holds no BERT: it lacks {name}.")
    hidden, width = tensor_shape(state, "encoder.layer.0.intermediate.dense.weight", 2, source)
    sizes = {
        "width": width,
        "depth": len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")}),
        "heads": raw.get("num_attention_heads", 12),
        "hidden": hidden,
    }
    rows, _ = tensor_shape(state, "embeddings.position_embeddings.weight", 2, source)
    traits = {"eps": raw.get("layer_norm_eps", 1e-12), "max_positions": rows}
    return StartingWeights(source, sizes, traits, state)


@torch.no_grad()
def load_bert(text: TextTransformer, start: StartingWeights) -> None:
    """Load BERT's weights into the text transformer, self-attention into that of both roles.

    A shorter position table takes the first rows. The vocabulary must be BERT's, with or without [DEC] and [ENC].
    """
    start.require_sizes(text.config)
    used: set[str] = set()
    missing: list[str] = []
    misshapen: list[str] = []
    for name, tensor in text.state_dict().items():
        shared_name = f"text.{_SEPARATE_DECODER.sub('', name)}"
        bert_names = [_bert_name(aliases[0]) for aliases in official_names(shared_name)]
        used.update(bert_names)
        absent = [part for part in bert_names if part not in start.state]
        if absent:
            missing += [] if _RANDOM_START.search(shared_name) else absent
            continue
        parts = [start.state[part] for part in bert_names]
        rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        count = len(tensor)
        if name.endswith("embeddings.position.weight"):
            rows = rows[:count]
        elif name.endswith("embeddings.word.weight") or name == "lm_head.bias":
            if not count - 2 <= len(rows) <= count:
                raise ValueError(
                    f"{start.source} has {len(rows)} word embeddings, but the tokenizer has {count} tokens with [DEC] "
                    "and [ENC]: start from the vocabulary that it was trained on."
                )
            count = len(rows)
        if rows.shape != tensor[:count].shape:
            misshapen.append(f"{bert_names[0]} {tuple(rows.shape)} for {tuple(tensor.shape)}")
        else:
            tensor[:count].copy_(rows)
    unexpected = [name for name in start.state if name not in used]
    require_fit(start.source, missing, unexpected, misshapen, "the model's text transformer")


def _torch_name(name: str) -> str:
    """Rename LayerNorm's gamma and beta (of BERT's TensorFlow code) to weight and bias."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _bert_name(official: str) -> str:
    for stack in ("text_decoder.bert.", "text_encoder.", "text_decoder."):
        official = official.removeprefix(stack)
    return official


def _find_weights(source: str) -> Path:
    """Return the weight file at a path or hub id: safetensors, else a pickle."""
    path = Path(source)
    if not path.exists():
        path = download_from_hub(source, SAFETENSORS)
        if not any(path.glob("*.safetensors")):
            path = download_from_hub(source, PICKLES)
    if path.is_file():
        return path
    for name in (*SAFETENSORS, *PICKLES):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{source} has no weights of an image encoder: none of {', '.join(SAFETENSORS + PICKLES)}.")


def _timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower of a timm or open_clip state dict under timm's names, without classifier."""
    for prefix in ("visual.trunk.", "visual."):
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    out = {}
    for name, tensor in state.items():
        for pattern, timm_name in OPEN_CLIP:
            name = re.sub(pattern, timm_name, name)
        if not name.startswith(CLASSIFIERS):
            out[name] = tensor
    if "cls_token" in out:
        # open_clip's tables have no leading dimensions.
        for name in ("cls_token", "pos_embed"):
            if name in out and out[name].numel() and out[name].ndim:
                out[name] = out[name].reshape(1, -1, out[name].shape[-1])
    return out


def _timm_tower(name: str) -> nn.Module:
    timm = import_timm()
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"timm has no pretrained model {name!r} ({error}): timm.list_pretrained() lists them."
        ) from error


def _open_clip_tower(spec: str) -> nn.Module:
    open_clip = import_open_clip()
    arch, _, tag = spec.partition("/")
    if arch not in open_clip.list_models() or not tag:
        raise ValueError(
            f"open_clip has no model {spec!r}: write open_clip:ARCH/TAG, as in open_clip.list_pretrained()."
        )
    tower = open_clip.create_model(arch, pretrained=tag).visual
    return getattr(tower, "trunk", tower)


def _detect_traits(tower: nn.Module) -> dict[str, Any]:
    """Return the settings of a ViT that its tensors lack: heads, LayerNorm eps, activation."""
    activations = [name for name in (type(module).__name__ for module in tower.modules()) if name in ACTIVATIONS]
    if not activations:
        raise ValueError(f"{type(tower).__name__} has none of the activations {', '.join(ACTIVATIONS)}.")
    heads = next(module.num_heads for module in tower.modules() if hasattr(module, "num_heads"))
    eps = next(module.eps for module in tower.modules() if isinstance(module, nn.LayerNorm))
    return {"heads": heads, "eps": eps, "activation": ACTIVATIONS[activations[0]]}
