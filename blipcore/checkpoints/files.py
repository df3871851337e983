"""Reads files of tensors: safetensors and torch pickles.

Pickles are opened with `weights_only=True`, so no code in a file runs.
"""

import warnings
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from blipcore.io.hub import weight_files


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a model folder."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= read_tensors(file)
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file: safetensors by its suffix, else a torch pickle."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}): copy or save it again.") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a torch file: its "model" entry, as in official files, else its content."""
    try:
        with warnings.catch_warnings():
            # torch warns about an unknown pickle protocol before it fails.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise errors of many types
        raise ValueError(
            f"{path} is no PyTorch checkpoint of plain tensors ({type(error).__name__}): it is truncated, another kind "
            "of file, or holds pickled code, which is never run."
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} is a PyTorch file, but no checkpoint: it holds no state dict of tensors.")
    return state
