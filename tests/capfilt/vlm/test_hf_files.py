"""The prompt of each family, and the files that identify a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capfilt.caption.chat import ChatConfig
from capfilt.caption.hf_prompt import hf_prompt
from capfilt.caption.registry import recorded_settings
from capfilt.vlm.hf_files import hf_fingerprint


def save_config(folder: Path, model_type: Any, **processor: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@pytest.mark.parametrize(
    ("model_type", "prompt"),
    [("git", ""), ("florence2", "<CAPTION>"), ("qwen2_vl", ChatConfig.prompt), (None, ChatConfig.prompt)],
)
def test_families_that_take_no_instruction_get_their_own_prompt(tmp_path: Path, model_type: Any, prompt: str) -> None:
    model = save_config(tmp_path / "model", model_type)
    assert hf_prompt(model, ChatConfig.prompt) == prompt
    assert hf_prompt(model, "a photo of") == "a photo of"
    assert recorded_settings(f"hf:{model}", ChatConfig())["prompt"] == prompt


def test_a_pix2struct_model_that_reads_a_header_gets_the_instruction(tmp_path: Path) -> None:
    assert hf_prompt(save_config(tmp_path / "caption", "pix2struct", is_vqa=False), ChatConfig.prompt) == ""
    assert hf_prompt(save_config(tmp_path / "vqa", "pix2struct", is_vqa=True), ChatConfig.prompt) == ChatConfig.prompt
    nested = save_config(tmp_path / "nested", "pix2struct", image_processor={"is_vqa": True})
    assert hf_prompt(nested, ChatConfig.prompt) == ChatConfig.prompt


def test_the_fingerprint_covers_weights_in_any_format(tmp_path: Path) -> None:
    model = save_config(tmp_path / "model", "git")
    seen = [hf_fingerprint(model)]
    for name in ("pytorch_model.bin", "tokenizer.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes(b"content")
        seen.append(hf_fingerprint(model))
    assert len(set(seen)) == 4


def test_a_config_that_is_no_json_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    model = save_config(tmp_path / "model", "git")
    (tmp_path / "model" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is no JSON file"):
        recorded_settings(f"hf:{model}", ChatConfig())
