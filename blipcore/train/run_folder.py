"""The folder of a run: who owns it, what was logged, whether it is done.

config.yaml      the resolved configuration; a relaunch must agree with it
metrics.jsonl    one record every `log_every` steps; after a resume each step stands there once
tensorboard/     the same for TensorBoard
checkpoints/     see `checkpoint.py`
summary.json     what `fit` returned
model/           the trained model; present means the run is done
"""

import contextlib
import json
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

# Settings that change the speed or the trail of a run, never its result: a relaunch may differ in them.
INCIDENTAL = {"workers", "log_every", "save_every", "keep", "recompute"}


class RunFolder:
    """The run at `path` with the resolved configuration `config`."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = json.loads(json.dumps(config, default=str))  # as YAML gives it back: no tuples, no paths
        self.model, self.checkpoints = path / "model", path / "checkpoints"

    def claim(self) -> dict[str, Any] | None:
        """Make the folder this run's own; returns the summary when the run is done already.

        ValueError when another configuration has been trained here.
        """
        stored = self.path / "config.yaml"
        if stored.is_file():
            changes = diff(yaml.safe_load(stored.read_text(encoding="utf-8")) or {}, self.config)
            if changes:
                raise ValueError(
                    f"{self.path} holds a run with another configuration; choose another folder or remove it. "
                    f"There -> here: {'; '.join(changes)}"
                )
        if self.model.exists():
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        self.path.mkdir(parents=True, exist_ok=True)
        header = f"# torch {torch.__version__}, Python {platform.python_version()}\n"
        write_text(stored, header + yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        return None

    @contextlib.contextmanager
    def logs(self, step: int) -> Iterator[Callable[[dict[str, float]], None]]:
        """Gives a function that appends a record (with its "step") to metrics.jsonl and TensorBoard.

        It goes on after `step`: records of later steps come from an attempt that was not saved, and are dropped.
        """
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            write_text(metrics, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

        def log(record: dict[str, float]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()
            for name, value in record.items():
                if name != "step":
                    board.add_scalar(name, value, record["step"])

        folder = str(self.path / "tensorboard")
        with metrics.open("a", encoding="utf-8") as file, SummaryWriter(folder, purge_step=step + 1) as board:
            yield log

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary; the model is written after it, since its presence says that all is done."""
        write_text(self.path / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two nested configurations, as "a.b: 1 -> 2", apart from incidental settings."""
    before, after = _flat(old), _flat(new)
    return [
        f"{name}: {before.get(name, 'absent')!r} -> {after.get(name, 'absent')!r}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name, "absent") != after.get(name, "absent") and name.rpartition(".")[2] not in INCIDENTAL
    ]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step: a kill leaves the old or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM, SIGUSR1 and Ctrl-C into a list instead of dying, so that the loop can save and leave.

    A second signal of the same kind has its usual effect. Outside the main thread Python cannot do this; then nothing
    is collected.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    with contextlib.suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
