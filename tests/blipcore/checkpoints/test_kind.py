"""The kind of a checkpoint is told by its config or its tensor names, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from blipcore.checkpoints.kind import albef_task, checkpoint_kind, describe_use

TYPES = "text_encoder.bert.embeddings.token_type_embeddings.weight"


def test_a_folder_is_told_by_its_config(tmp_path: Path) -> None:
    for config, kind in (
        ({"format": "blipcore"}, "blip"),
        ({"model_type": "blip"}, "blip"),
        ({"model_type": "bert"}, "blip"),
        ({"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]}, "blip2 filter"),
        ({"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}, "blip2 captioner"),
        ({"model_type": "blip-2"}, "blip2 captioner"),
        ({"model_type": "blip-2", "architectures": None}, "blip2 captioner"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert checkpoint_kind(tmp_path) == kind


@pytest.mark.parametrize("name", [TYPES, "module." + TYPES, "text_encoder.word.weight"])
def test_a_file_is_told_by_its_tensor_names(tmp_path: Path, name: str) -> None:
    state, kind = {name: torch.ones(1)}, "albef" if TYPES in name else "blip"
    torch.save({"model": state}, tmp_path / "new.pth")
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    for file in ("new.pth", "old.pth", "a.safetensors"):
        assert checkpoint_kind(tmp_path / file) == kind


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04 damaged", b"text", b"\xff" * 8 + b"\0" * 8])
def test_a_damaged_file_is_left_to_the_loader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert checkpoint_kind(tmp_path / "a.pth") == "blip"


def test_the_tasks_of_albef_and_the_uses_of_other_kinds() -> None:
    assert albef_task(["visual_encoder.cls_token", "text_encoder.x"]) is None
    heads = ["visual_encoder.x", "vision_proj.weight", "text_proj.weight", "itm_head.weight"]
    assert albef_task([TYPES, *heads]) == "filter"
    assert albef_task([TYPES, "text_decoder.x"]).startswith("VQA model")
    assert describe_use("blip2 captioner", "m") == (
        "m is a BLIP-2 captioner: give it to `capfilt caption --model hf:m`."
    )


def test_no_torch_is_imported() -> None:
    code = "import sys, blipcore.checkpoints.kind, blipcore.checkpoints.numerics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
