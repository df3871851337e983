"""Reads files of tensors: safetensors and torch pickles, out of the wrappers of other training loops.

Pickles are opened with `weights_only=True` and numpy's numbers and arrays, so no code in a file runs.
"""

import codecs
import logging
import pickletools
import re
import shlex
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from blipcore.io.hub import weight_files
from blipcore.io.messages import shorten

logger = logging.getLogger(__name__)

# Keys under which training loops store a state dict, in order of preference: the official code and LAVIS, Lightning
# and timm, DeepSpeed, and averaged copies last.
WRAPPERS: tuple[str, ...] = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network")
WRAPPERS += ("weights", "student", "checkpoint", "ema", "ema_state_dict", "model_ema", "state_dict_ema", "ema_model")
WRAPPERS += ("shadow", "teacher")
# Parts of names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add.
_WRAPPER_NAMES = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_REFUSED_CLASS = re.compile(r"Unsupported global: GLOBAL ([\w.]+)|Unsupported class ([\w.]+)")
# Modules and functions that no checkpoint needs.
_DANGEROUS = re.compile(
    r"(_?io|nt|os|posix|runpy|shutil|socket|subprocess|sys|webbrowser)\.|(builtins\.)?(eval|exec|open|compile)$"
)
# How other files begin.
_OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer instead of the weights: run `git lfs pull` in its folder",
    b"<": "a web page instead of the weights: download the file itself",
    b"{": "a JSON file, not the weights",
}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a model folder."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= read_tensors(file)
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a safetensors file or a torch pickle, told apart by their first bytes."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty: copy or save it again.")
    refuse_other_file(path, head)
    is_safetensors = path.suffix == ".safetensors" or _is_safetensors(head)
    state = read_safetensors(path) if is_safetensors else read_pickle(path)
    if unfilled := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ValueError(
            f"{path} holds the shapes of {shorten(unfilled)} without their numbers: save the model after its weights "
            "are loaded."
        )
    return state


def refuse_other_file(path: Path, head: bytes) -> None:
    """Raise ValueError for a web page, a JSON file or a Git LFS pointer, by the first bytes `head`."""
    if _is_safetensors(head):
        return
    for start, kind in _OTHER_FILES.items():
        if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(start):
            raise ValueError(f"{path} is {kind}.")


def _is_safetensors(head: bytes) -> bool:
    """Return whether a file begins with the length of a JSON object, in eight bytes."""
    return head[4:9] == b"\0\0\0\0{"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        return remove_wrapper_names(safetensors.torch.load_file(path), path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}): copy or save it again.") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a torch file: its content, or the entry with the first name of `WRAPPERS`.

    Raises ValueError for objects of other classes than tensors, numbers and plain containers, which would run code.
    """
    return select_state(load_pickle(path), path)


def load_pickle(path: Path) -> Any:
    """Return the content of a torch file with tensors, numbers and plain containers."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_classes()):
            # torch warns about an unknown pickle protocol before it fails.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise errors of many types
        classes = _refused_classes(path, error)
        if not classes:
            raise ValueError(
                f"{path} is no PyTorch checkpoint of plain tensors ({type(error).__name__}): it is truncated, another "
                "kind of file, or holds pickled code, which is never run."
            ) from error
        raise ValueError(
            f"{path} is no PyTorch checkpoint of plain tensors: it holds {' and '.join(classes)}, and opening it would "
            f"run code, which is never done; {_remedy(path, classes)}"
        ) from error


def select_state(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the content of a torch file; name it in the log if there are several."""
    states = dict(_find_states(content))
    if not states:
        keys = f"; its keys are {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, Mapping) else ""
        raise ValueError(f"{path} is a PyTorch file, but no checkpoint: it holds no state dict of tensors{keys}.")
    name, *others = states
    if others:
        logger.warning("%s: the weights '%s' are read, not those under '%s'.", path, name, "', '".join(others))
    return remove_wrapper_names(states[name], path)


def _find_states(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (dotted key, state dict) for each state dict in the content of a file."""
    if not isinstance(content, Mapping) or depth > 4:
        return
    wrapped = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    for key in wrapped:
        yield from _find_states(content[key], f"{name}.{key}".strip("."), depth + 1)
    if not wrapped and all(isinstance(key, str) for key in content):
        tensors = {key: _to_tensor(value) for key, value in content.items()}
        # A saved state dict may also hold numbers, such as the epoch.
        state = {key: tensor for key, tensor in tensors.items() if tensor is not None}
        if state:
            yield name, state


def _to_tensor(value: object) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value)).clone()
    return value.detach() if isinstance(value, Tensor) else None


def remove_wrapper_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return `state` without the parts "module.", "_orig_mod." and the like of its names.

    The counter of torch's AveragedModel is left out.
    """
    renamed = {_WRAPPER_NAMES.sub("", name): tensor for name, tensor in state.items()}
    if len(renamed) < len(state):
        raise ValueError(f"{path} holds a model twice, with and without the prefixes of a wrapper: keep one of them.")
    renamed.pop("n_averaged", None)
    return renamed


def _numpy_classes() -> list[Any]:
    """Return what numpy's pickled scalars and arrays are made of, under its names before and since numpy 2."""
    from numpy._core import multiarray

    functions = [(multiarray.scalar, "scalar"), (multiarray._reconstruct, "_reconstruct")]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    names = [(function, f"{module}.{name}") for function, name in functions for module in modules]
    return [np.dtype, np.ndarray, *names, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdUSMm"}]


def _refused_classes(path: Path, error: Exception) -> list[str]:
    """Return the names of the classes in a pickle that are not plain data."""
    try:
        names: list[str] = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # a file in torch's old format, or a damaged one
        names = []
    if not names:
        names = [match[1] or match[2] for match in _REFUSED_CLASS.finditer(str(error))]
    others = sorted({name for name in names if not name.startswith("numpy.")})
    return others[:3] or (["a numpy array of Python objects"] if names else [])


def _remedy(path: Path, classes: list[str]) -> str:
    """Return the command that rewrites a pickle with its tensors alone, or say that no checkpoint needs its content."""
    if any(_DANGEROUS.match(name) for name in classes):
        return "no checkpoint needs it, so do not trust this file."
    strings = _pickled_strings(path)
    # The strings of a pickle are also those of its settings.
    keys = [key for key in WRAPPERS if key in strings or (not strings and key in WRAPPERS[:2])]
    found = "isinstance(c, dict) and k in c and not isinstance(c[k], str)"
    entry = f"next((c[k] for k in {keys} if {found}), c)" if keys else "c"
    target = path.with_name(f"{path.stem}-tensors.pth")
    code = (
        f"import torch; c = torch.load({str(path)!r}, 'cpu', weights_only=False); m = {entry}; "
        f"torch.save({{'model': getattr(m, 'state_dict', lambda: m)()}}, {str(target)!r})"
    )
    command = "python -c " + (shlex.quote(code) if set(code) & set('"$`!\\') else f'"{code}"')
    return f"if you trust the file, keep its tensors alone with: {command}"


def _pickled_strings(path: Path) -> set[str]:
    """Return the strings in the pickle of a torch file, without unpickling it."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return {argument for _, argument, _ in pickletools.genops(archive.read(name)) if isinstance(argument, str)}
    except Exception:  # torch's old format
        return set()
