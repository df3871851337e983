"""Saves a model as a blipcore folder, an official .pth file or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from blipcore.checkpoints.huggingface import huggingface_files
from blipcore.checkpoints.load import VERSION, is_blipcore_folder
from blipcore.checkpoints.names import OPTIONAL_TENSORS, to_official
from blipcore.io.writing import atomic_path, write_json
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig
from blipcore.model.tokenizer import Tokenizer


def save_model(folder: str | Path, model: Blip, tokenizer: Tokenizer) -> None:
    """Write a blipcore folder atomically. Raises ValueError if the folder exists and holds anything but a model."""
    folder = Path(folder)
    if folder.exists() and not (is_blipcore_folder(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise ValueError(f"{folder} exists and is no blipcore model: choose another path.")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(folder) as staging:
        staging.mkdir()
        config = {"format": "blipcore", "version": VERSION, "config": model.config.to_dict()}
        write_json(staging / "config.json", config)
        safetensors.torch.save_file(state, staging / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(staging)


def save_official(file: str | Path, model: Blip) -> None:
    """Write {"model": state dict} as the official code loads it, without a tokenizer.

    Raises ValueError for a model that the official code cannot build.
    """
    _require_official_architecture(model.config, file)
    state = {name: tensor.detach().cpu().clone() for name, tensor in to_official(model.state_dict()).items()}
    if "decode" not in model.config.text.roles:
        # Official ITM inference files have no temperature.
        for name, initial in OPTIONAL_TENSORS.items():
            if name in state and state[name] == initial:
                del state[name]
    with atomic_path(Path(file)) as staging:
        torch.save({"model": state}, staging)


def save_huggingface(folder: str | Path, model: Blip, tokenizer: Tokenizer) -> None:
    """Write a folder that transformers opens: weights, config, tokenizer, image processor, generation settings.

    Raises ValueError for a model that transformers cannot build.
    """
    _require_official_architecture(model.config, folder)
    files = huggingface_files(model, tokenizer, folder)
    state = {
        name: tensor.detach().cpu().clone()
        for name, tensor in to_official(model.state_dict(), hf=True).items()
        # transformers ties these to the word embeddings and does not save them.
        if ".cls.predictions.decoder." not in name
    }
    with atomic_path(Path(folder)) as staging:
        staging.mkdir()
        safetensors.torch.save_file(state, staging / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(staging)
        for name, content in files.items():
            write_json(staging / name, content)


def _require_official_architecture(config: BlipConfig, target: str | Path) -> None:
    """Raise ValueError for a model that neither the official code nor transformers can build."""
    if config.text.share != "all-but-sa":
        raise ValueError(
            f"Cannot write {target}: its text roles share {config.text.share!r}, but BLIP's share 'all-but-sa'."
        )
    if config.vision.pre_norm or config.vision.activation != "gelu":
        raise ValueError(
            f"Cannot write {target}: the image encoder is CLIP's, with a first LayerNorm or quick GELU that neither "
            "the official code nor transformers' BLIP has."
        )
