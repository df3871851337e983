"""Configs of transformers' BLIP folders, read and written.

`huggingface_config` converts a folder's config.json into a `BlipConfig`; `huggingface_files` returns the JSON files
with which transformers builds the same model. Tensor names are in `names`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from blipcore.checkpoints.numerics import Numerics, resolve_numbers
from blipcore.checkpoints.sizes import detect_parts
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig
from blipcore.model.tokenizer import Tokenizer
from blipcore.model.vit import CLIP_MEAN, CLIP_STD

# In training.
DROPOUT = LABEL_SMOOTHING = 0.1
# (text roles, heads) -> class of transformers
HF_CLASSES: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {
    (("decode",), ()): "BlipForConditionalGeneration",
    (("encode",), ("itc", "itm")): "BlipForImageTextRetrieval",
    (("encode",), ("vqa",)): "BlipForQuestionAnswering",
}


def huggingface_config(
    raw: Mapping[str, Any], state: Mapping[str, Tensor], path: object, numerics: Numerics = "official"
) -> BlipConfig:
    """Return the config of a Hugging Face BLIP, with transformers' defaults for keys that config.json lacks.

    The numerics "official" restore the trained text heads and LayerNorm eps of the released models (see
    `blipcore.checkpoints.numerics`), and replace a dropout of 0 (transformers' default) by BLIP's 0.1. "transformers"
    takes every value from the file.
    """
    vision, text = raw.get("vision_config") or {}, raw.get("text_config") or {}
    for part in (vision, text):
        if part.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"{path} uses the activation {part['hidden_act']!r}; BLIP uses 'gelu'.")
    roles, heads = detect_parts(state, path)
    width, text_width = vision.get("hidden_size", 768), text.get("hidden_size", 768)
    text_heads, vision_eps = resolve_numbers(vision, text, numerics)
    dropout = text.get("hidden_dropout_prob", 0.0)
    if numerics == "official":
        dropout = dropout or DROPOUT
    return BlipConfig.from_dict(
        {
            "vision": {
                "image_size": vision.get("image_size", 384),
                "patch_size": vision.get("patch_size", 16),
                "width": width,
                "depth": vision.get("num_hidden_layers", 12),
                "heads": vision.get("num_attention_heads", 12),
                "mlp_ratio": vision.get("intermediate_size", 3072) / width,
                "eps": vision_eps,
            },
            "text": {
                "vocab_size": text.get("vocab_size", 30524),
                "width": text_width,
                "depth": text.get("num_hidden_layers", 12),
                "heads": text_heads,
                "hidden": text.get("intermediate_size", 3072),
                "max_positions": text.get("max_position_embeddings", 512),
                "encoder_width": width,
                "dropout": dropout,
                "eps": text.get("layer_norm_eps", 1e-12),
                "roles": roles,
            },
            "embed_dim": raw.get("image_text_hidden_size", 256),
            "heads": heads,
        }
    )


def to_huggingface_config(config: BlipConfig, tokenizer: Tokenizer, target: object) -> dict[str, Any]:
    """Return the config.json with which transformers builds the same model; inverse of `huggingface_config`."""
    name = HF_CLASSES.get((config.text.roles, config.heads))
    if name is None:
        parts = ", ".join((*config.text.roles, *config.heads))
        raise ValueError(
            f"Cannot write {target}: transformers has no BLIP class with the parts {parts}. It has captioners "
            "(--task caption), retrieval models (--task retrieval) and VQA models."
        )
    if "vqa" in config.heads and config.text.width != config.vision.width:
        raise ValueError(
            f"Cannot write {target}: transformers' answer decoder reads states of the image encoder's width "
            f"{config.vision.width}, but this model's question states have width {config.text.width}."
        )
    vision, text = config.vision, config.text
    return {
        "model_type": "blip",
        "architectures": [name],
        "dtype": "float32",
        "image_text_hidden_size": config.embed_dim,
        "projection_dim": config.embed_dim,
        "label_smoothing": LABEL_SMOOTHING,
        "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "blip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu",
            "layer_norm_eps": vision.eps,
        },
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": text.encoder_width,
            "intermediate_size": text.hidden,
            "projection_dim": text.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.max_positions,
            "hidden_act": "gelu",
            "layer_norm_eps": text.eps,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "label_smoothing": LABEL_SMOOTHING,
            "bos_token_id": tokenizer.bos,
            "eos_token_id": tokenizer.sep,
            "sep_token_id": tokenizer.sep,
            "pad_token_id": tokenizer.pad,
        },
    }


def huggingface_files(model: Blip, tokenizer: Tokenizer, target: object) -> dict[str, dict[str, Any]]:
    """Return name -> content of the JSON files of a transformers folder, except the vocabulary."""
    config = to_huggingface_config(model.config, tokenizer, target)
    if model.temp is not None:
        # Ignored by transformers, read by `read_huggingface`.
        config["temp"] = model.temp.item()
    side = model.config.vision.image_size
    special = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.sep, "pad_token_id": tokenizer.pad}
    return {
        "config.json": config,
        "generation_config.json": special,
        "preprocessor_config.json": {
            "processor_class": "BlipProcessor",
            "image_processor_type": "BlipImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 3,  # PIL's number for bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
        },
        "tokenizer_config.json": {
            "processor_class": "BlipProcessor",
            "model_max_length": model.config.text.max_positions,
            **tokenizer.settings(),
        },
    }
