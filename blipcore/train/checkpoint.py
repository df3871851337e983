"""The full state of a run on disk: written whole or not at all, the last few kept, the newest readable one restored.

In: a state of tensors (weights, momentum encoders, queues, optimiser, random generators) and a small readable one
(step, seconds). Out: `step-000500/state.pt` and `step-000500/state.json`, a folder that appears by a rename when it is
complete.
"""

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

TENSORS, READABLE = "state.pt", "state.json"


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = (path for path in self.folder.glob("step-*") if (path / READABLE).is_file())
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def save(self, step: int, tensors: dict[str, Any], readable: dict[str, Any]) -> Path:
        """Write a checkpoint and drop the oldest beyond `keep`; raises OSError, leaving the older ones as they are."""
        final = self.folder / f"step-{step:06d}"
        partial = self.folder / f".{final.name}"
        _remove(partial)
        try:
            partial.mkdir(parents=True)
            torch.save(tensors, partial / TENSORS)
            size = (partial / TENSORS).stat().st_size
            text = json.dumps(readable | {"step": step, "bytes": size}, indent=1) + "\n"
            (partial / READABLE).write_text(text, encoding="utf-8")
            for path in (partial / TENSORS, partial / READABLE, partial):
                _flush(path)
            _remove(final)
            partial.rename(final)
            _flush(self.folder)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            _remove(partial)
            kept = self.complete()
            left = f"the newest complete one is {kept[-1]}" if kept else "there is no earlier one"
            raise OSError(f"could not write the checkpoint {final}, {left}: {error}") from error
        for old in self.complete()[: -self.keep]:
            _remove(old)
        return final

    def restore(self) -> tuple[dict[str, Any], dict[str, Any], list[str]] | None:
        """(tensors, readable, warnings) of the newest checkpoint that can be read, None when there is none.

        A damaged one (cut short by a crash of the machine, or edited) is passed over with a warning.
        """
        warnings = []
        for path in reversed(self.complete()):
            try:
                readable = json.loads((path / READABLE).read_text(encoding="utf-8"))
                if (path / TENSORS).stat().st_size != readable["bytes"]:
                    raise ValueError(f"{TENSORS} is cut short")
                tensors = torch.load(path / TENSORS, map_location="cpu", weights_only=True)
                return tensors, readable, warnings
            except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                warnings.append(f"checkpoint {path} is damaged and passed over: {error}")
        if warnings:
            raise ValueError(f"no checkpoint can be read ({'; '.join(warnings)}); remove them to start anew")
        return None


def random_state() -> dict[str, Any]:
    """The states of every random generator that training may draw from, as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Undo `random_state`; the CUDA part applies where the same number of devices is visible."""
    torch.set_rng_state(state["torch"])
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), next(iter(state["python_gauss"].tolist()), None)))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    if len(state.get("cuda", [])) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


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
