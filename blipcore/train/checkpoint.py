"""The full state of a run on disk: written whole or not at all, the last few kept, the newest readable one restored.

In: on every process, its tensors by name (weights, momentum encoders, queues, optimiser, random generators; of sharded
ones its part) and, from rank 0, a small readable state (step, stream position). Out: a folder `step-000500` of
safetensors files by torch's distributed checkpoint and `state.json`, which names the files and their sizes. The folder
appears by a rename when it is complete. What is replicated is written once, and any number of processes can read it.
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter

from blipcore import distributed

READABLE = "state.json"


class Checkpoints:
    """The checkpoints of one run, in a folder of their own that all processes see."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = (path for path in self.folder.glob("step-*") if (path / READABLE).is_file())
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def save(self, step: int, tensors: dict[str, Tensor], readable: dict[str, Any]) -> Path:
        """Write a checkpoint and drop the oldest beyond `keep`; raises OSError, leaving the older ones as they are."""
        final = self.folder / f"step-{step:06d}"
        partial = self.folder / f".{final.name}"
        try:
            distributed.on_main(lambda: _make_anew(partial))
            # Safetensors instead of torch's own files: reading these would unpickle them.
            writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
            with _alone():
                dcp.save(tensors, storage_writer=writer)
            distributed.on_main(lambda: self._publish(partial, final, readable | {"step": step}))
        except (OSError, CheckpointException) as error:
            distributed.on_main(lambda: _remove(partial))
            kept = self.complete()
            left = f"the newest complete one is {kept[-1]}" if kept else "there is no earlier one"
            raise OSError(f"could not write the checkpoint {final}, {left}: {_cause(error)}") from error
        return final

    def _publish(self, partial: Path, final: Path, readable: dict[str, Any]) -> None:
        files = sorted(partial.iterdir())
        sizes = {path.name: path.stat().st_size for path in files}
        (partial / READABLE).write_text(json.dumps(readable | {"files": sizes}, indent=1) + "\n", encoding="utf-8")
        for path in (*files, partial / READABLE, partial):
            _flush(path)
        _remove(final)
        partial.rename(final)
        _flush(self.folder)
        for old in self.complete()[: -self.keep]:
            _remove(old)

    def restore(self, into: Callable[[dict[str, Any]], dict[str, Tensor]]) -> tuple[dict[str, Any], list[str]] | None:
        """Fill tensors from the newest checkpoint that can be read; None when there is none.

        `into(readable)` gives the tensors to fill in place, by name. Returns the readable state and warnings: a damaged
        checkpoint (cut short by a crash of the machine, or edited) is passed over.
        """
        passed_over = []
        for path in distributed.on_main(lambda: self.complete()[::-1]):
            try:
                readable = distributed.on_main(lambda path=path: _read(path))
                with _alone():
                    dcp.load(into(readable), storage_reader=HuggingFaceStorageReader(str(path)))
                return readable, passed_over
            except (OSError, ValueError, KeyError, CheckpointException) as error:
                passed_over.append(f"checkpoint {path} is damaged and passed over: {_cause(error)}")
        if passed_over:
            raise ValueError(f"no checkpoint can be read ({'; '.join(passed_over)}); remove them to start anew")
        return None


def _alone() -> AbstractContextManager:
    """Without torch's warning that a process without a group is alone."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _read(path: Path) -> dict[str, Any]:
    """The readable state of a checkpoint whose files are as it says; ValueError when they are not."""
    readable = json.loads((path / READABLE).read_text(encoding="utf-8"))
    for name, size in readable["files"].items():
        if (path / name).stat().st_size != size:
            raise ValueError(f"{name} is cut short")
        try:
            with safe_open(path / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{name}: {error}") from error
    return readable


def _cause(error: BaseException) -> str:
    """In one line, the first of the errors that torch collected from the processes."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split())


def random_state(device: str) -> dict[str, Tensor]:
    """The states of every random generator that training on `device` may draw from, in tensors of fixed shapes."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if device.startswith("cuda"):
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: str) -> None:
    """Undo `random_state`."""
    torch.set_rng_state(state["torch"])
    has_gauss, gauss = state["python_gauss"].tolist()
    random.setstate((random.getstate()[0], tuple(state["python"].tolist()), gauss if has_gauss else None))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _make_anew(folder: Path) -> None:
    _remove(folder)
    folder.mkdir(parents=True)


def _flush(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves nothing that looks like one."""
    if path.exists():
        doomed = path.with_name(f".{path.name.lstrip('.')}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
