"""Files of tensors: read with one sentence for what is wrong with them, written whole or not at all.

In: a path. Out: plain data and tensors. Pickles are opened with `weights_only=True` alone, so
no code in a file ever runs.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from blipcore.io.hub import weight_files


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= read_tensors(file)
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors by its name, else a torch pickle."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file ({error}): copy or save it again") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict of a torch file: its "model" entry, as official files have, or the whole."""
    try:
        with warnings.catch_warnings():  # of a pickle protocol that it may not read: it then fails, below
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its several readers stumble over
        raise ValueError(
            f"{path} is no PyTorch checkpoint of plain tensors ({type(error).__name__}): it is cut short, "
            "another kind of file, or holds pickled code, which is never run"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    pairs = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in pairs):
        raise ValueError(f"{path} is a PyTorch file, but no checkpoint: it holds no state dict of tensors")
    return state


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as a reader would like to see it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
