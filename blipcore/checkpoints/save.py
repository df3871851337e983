"""Saves a model as a blipcore folder, an official `.pth` file or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from blipcore.checkpoints.files import write_json
from blipcore.checkpoints.huggingface import huggingface_files
from blipcore.checkpoints.load import VERSION, is_blipcore_folder
from blipcore.checkpoints.names import (
    OPTIONAL_TENSORS,
    to_official,
)
from blipcore.io.writing import atomic_path
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig
from blipcore.model.tokenizer import Tokenizer


def save_model(folder: str | Path, model: Blip, tokenizer: Tokenizer) -> None:
    """Write a blipcore folder; it appears complete or not at all, and replaces an older one of the same place."""
    folder = Path(folder)
    if folder.exists() and not (is_blipcore_folder(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise ValueError(f"{folder} exists and is no blipcore model: choose another place to save to")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(folder) as staging:
        staging.mkdir()
        write_json(
            staging / "config.json", {"format": "blipcore", "version": VERSION, "config": model.config.to_dict()}
        )
        safetensors.torch.save_file(state, staging / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(staging)


def save_official(file: str | Path, model: Blip) -> None:
    """Write the state dict that the official code loads, {"model": …}; it has no place for a tokenizer."""
    _require_plain(model.config, file)
    state = {name: tensor.detach().cpu().clone() for name, tensor in to_official(model.state_dict()).items()}
    if "decode" not in model.config.text.roles:  # as ITM inference files, which know no temperature
        for name in [name for name, initial in OPTIONAL_TENSORS.items() if name in state and state[name] == initial]:
            del state[name]
    with atomic_path(Path(file)) as staging:
        torch.save({"model": state}, staging)


def save_huggingface(folder: str | Path, model: Blip, tokenizer: Tokenizer) -> None:
    """Write a folder that transformers opens: weights, config, tokenizer, image processor, generation settings."""
    _require_plain(model.config, folder)
    files = huggingface_files(model, tokenizer, folder)
    state = {
        name: tensor.detach().cpu().clone()
        for name, tensor in to_official(model.state_dict(), hf=True).items()
        if ".cls.predictions.decoder." not in name  # transformers ties these two, and leaves them out as well
    }
    with atomic_path(Path(folder)) as staging:
        staging.mkdir()
        safetensors.torch.save_file(state, staging / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(staging)
        for name, content in files.items():
            write_json(staging / name, content)


def _require_plain(config: BlipConfig, target: str | Path) -> None:
    """ValueError for what neither the official code nor transformers can build."""
    if config.text.share != "all-but-sa":
        raise ValueError(
            f"{target} was not written: its text roles share {config.text.share!r}, and BLIP's 'all-but-sa'"
        )
    if config.vision.pre_norm or config.vision.activation != "gelu":
        raise ValueError(
            f"{target} was not written: the image encoder started from CLIP's, whose first LayerNorm or quick GELU "
            "neither the official code nor transformers' BLIP has"
        )
