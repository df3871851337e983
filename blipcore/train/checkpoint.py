"""Checkpoints of a run: written atomically, the last few kept, the newest readable one restored.

A checkpoint is a folder `step-000500`. Torch's distributed checkpoint writes the tensors of all processes (weights,
momentum encoders, queues, optimizer, random generators) as safetensors files: replicated ones once, sharded ones in
parts that any number of processes can read. `state.json` holds the step, the stream position and the sizes of these
files. The folder gets its name when it is complete.
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter

from blipcore import distributed
from blipcore.io.messages import one_line

STATE_FILE = "state.json"


class Checkpoints:
    """The last `keep` checkpoints of a run, in a folder that all processes share."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        folders = [path for path in self.folder.glob("step-*") if (path / STATE_FILE).is_file()]
        return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Write this process's tensors and, from rank 0, the JSON `state`; delete the oldest checkpoint beyond `keep`.

        Raises OSError if the checkpoint cannot be written; the older ones stay.
        """
        final = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".{final.name}"
        try:
            distributed.run_on_main(lambda: _make_empty(temporary))
            # Safetensors instead of torch's own files, which need unpickling.
            writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            with _without_warnings():
                dcp.save(tensors, storage_writer=writer)
            distributed.run_on_main(lambda: self._publish(temporary, final, state | {"step": step}))
        except (OSError, CheckpointException) as error:
            distributed.run_on_main(lambda: remove_folder(temporary))
            complete = self.complete()
            newest = f"the newest complete one is {complete[-1]}" if complete else "there is no earlier one"
            raise OSError(f"Cannot write the checkpoint {final}: {_cause(error)}; {newest}.") from error
        return final

    def _publish(self, temporary: Path, final: Path, state: dict[str, Any]) -> None:
        files = sorted(temporary.iterdir())
        sizes = {path.name: path.stat().st_size for path in files}
        state_file = temporary / STATE_FILE
        state_file.write_text(json.dumps(state | {"files": sizes}, indent=1) + "\n", encoding="utf-8")
        for path in (*files, state_file, temporary):
            _flush(path)
        remove_folder(final)
        temporary.rename(final)
        _flush(self.folder)
        for oldest in self.complete()[: -self.keep]:
            remove_folder(oldest)

    def restore(
        self, tensors_to_fill: Callable[[dict[str, Any]], dict[str, Tensor]]
    ) -> tuple[dict[str, Any], list[str]] | None:
        """Fill tensors from the newest readable checkpoint; return its state and warnings, or None without checkpoints.

        `tensors_to_fill(state)` returns the tensors to fill in place, by name. A damaged checkpoint (truncated in a
        crash, or edited) is skipped with a warning. Raises ValueError if all are damaged.
        """
        messages: list[str] = []
        for path in distributed.run_on_main(lambda: self.complete()[::-1]):
            try:
                state = distributed.run_on_main(partial(_read_state, path))
                with _without_warnings():
                    dcp.load(tensors_to_fill(state), storage_reader=HuggingFaceStorageReader(str(path)))
                return state, messages
            except (OSError, ValueError, KeyError, CheckpointException) as error:
                messages.append(f"checkpoint {path} is damaged and skipped: {_cause(error)}")
        if messages:
            raise ValueError(f"No checkpoint can be read ({'; '.join(messages)}): remove them to start anew.")
        return None


def _without_warnings() -> AbstractContextManager:
    """Suppress torch's warning that there is no process group."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _read_state(path: Path) -> dict[str, Any]:
    """Return the JSON state of a checkpoint; raise ValueError or OSError if a file that it lists is damaged."""
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    for name, size in state["files"].items():
        if (path / name).stat().st_size != size:
            raise ValueError(f"{name} is cut short")
        try:
            with safe_open(path / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{name}: {error}") from error
    return state


def _cause(error: BaseException) -> str:
    """Return the first error that torch collected from the processes, on one line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return one_line(error)


def random_state(device: str) -> dict[str, Tensor]:
    """Return the states of all random generators of training on `device`, as tensors of fixed shapes."""
    _, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    generator = numpy_state["state"]
    rest = [generator["pos"], numpy_state["has_gauss"], numpy_state["gauss"]]
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.from_numpy(generator["key"].astype(np.int64)),
        "numpy_rest": torch.tensor(rest, dtype=torch.float64),
    }
    if device.startswith("cuda"):
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: str) -> None:
    """Set all random generators to the result of `random_state`."""
    torch.set_rng_state(state["torch"])
    has_gauss, gauss = state["python_gauss"].tolist()
    random.setstate((random.getstate()[0], tuple(state["python"].tolist()), gauss if has_gauss else None))
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _make_empty(folder: Path) -> None:
    remove_folder(folder)
    folder.mkdir(parents=True)


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Delete a folder, such as a checkpoint, if it exists; a kill meanwhile leaves nothing that looks like one."""
    if path.exists():
        hidden = path.with_name(f".{path.name.lstrip('.')}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
