"""Hugging Face configs: released conversions get the trained values, unsupported models are refused.

Weights and outputs are compared in `test_transformers_parity`.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from random_checkpoints import CONFIG, random_model

from blipcore.checkpoints.huggingface import huggingface_config, huggingface_files, to_huggingface_config
from blipcore.checkpoints.load import TASK_PARTS
from blipcore.checkpoints.names import to_official
from blipcore.model.tokenizer import Tokenizer


def released_config(**changes: Any) -> dict[str, Any]:
    """Return the part of a released conversion's config.json that matters here."""
    text = {"hidden_size": 768, "num_attention_heads": 12} | changes
    return {"model_type": "blip", "text_config": text, "vision_config": {"layer_norm_eps": 1e-5}}


def test_released_conversions_get_the_trained_values_by_default() -> None:
    state = dict.fromkeys(("vision_model.post_layernorm.bias", "text_decoder.cls.predictions.bias"), torch.empty(0))
    official = huggingface_config(released_config(num_attention_heads=8), state, "hub")
    assert (official.vision.eps, official.text.heads, official.text.dropout) == (1e-6, 12, 0.1)
    literal = huggingface_config(released_config(num_attention_heads=8), state, "hub", "transformers")
    assert (literal.vision.eps, literal.text.heads, literal.text.dropout) == (1e-5, 8, 0.0)
    other = huggingface_config(released_config(hidden_size=64, num_attention_heads=8), state, "folder")
    assert (other.vision.eps, other.text.heads) == (1e-5, 8)


@pytest.mark.parametrize("task", ["caption", "retrieval"])
def test_a_config_survives_the_way_to_transformers_and_back(task: str, tokenizer: Tokenizer) -> None:
    model = random_model(task)
    raw = huggingface_files(model, tokenizer, "folder")["config.json"]
    assert huggingface_config(raw, to_official(model.state_dict(), hf=True), "folder") == model.config


@pytest.mark.parametrize("task", ["pretrain", "features", "nlvr"])
def test_models_without_a_transformers_class_are_refused(task: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="Cannot write folder: transformers has no BLIP class"):
        to_huggingface_config(CONFIG.select_parts(*TASK_PARTS[task]), tokenizer, "folder")


def test_a_vqa_model_needs_equal_widths(tokenizer: Tokenizer) -> None:
    config = CONFIG.select_parts(*TASK_PARTS["vqa"])
    with pytest.raises(ValueError, match="image encoder's width 64, but this model's question states have width 128"):
        to_huggingface_config(config, tokenizer, "folder")
    vision = replace(CONFIG.vision, width=128)
    equal = replace(CONFIG, vision=vision, text=replace(CONFIG.text, encoder_width=128)).select_parts("encode", "vqa")
    assert to_huggingface_config(equal, tokenizer, "folder")["architectures"] == ["BlipForQuestionAnswering"]
