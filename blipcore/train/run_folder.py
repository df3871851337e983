"""The folder of a run: who owns it, what was logged, whether it is done.

config.yaml      the resolved configuration; a relaunch must agree with it
launches.jsonl   one line a launch: the step it began at, versions, processes
metrics.jsonl    one record every `log_every` steps; after a resume each step stands there once
losses.svg       the same as a plot
tensorboard/     the same for TensorBoard
checkpoints/     see `checkpoint.py`
best/            the model that was best on the validation set, where there is one; its scores are in best.json
summary.json     what `fit` returned
model/           the trained model; present means the run is done
.lock            held by the process that trains here
"""

import contextlib
import json
import os
import platform
import signal
from collections.abc import Callable, Iterator
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from blipcore.io.config_diff import diff_configs, incidental_fields, per_process_fields
from blipcore.io.lock import FolderLockedError, lock_for_process
from blipcore.io.writing import remove_temporary_files, write_text
from blipcore.train.optim import TrainConfig
from blipcore.train.plot import draw_losses, read_records

NAMED = 8  # differences of two configurations that an error names; a run of another command has a hundred


class RunFolder:
    """The run at `path` with the resolved configuration `config`."""

    def __init__(self, path: Path, config: dict[str, Any], launch: dict[str, Any]) -> None:
        self.path, self.launch = path, launch | versions()
        self.config = json.loads(json.dumps(config, default=str))  # as YAML gives it back: no tuples, no paths
        self.model, self.best, self.checkpoints = path / "model", path / "best", path / "checkpoints"

    def claim(self) -> dict[str, Any] | None:
        """Make the folder this run's own; returns the summary when the run is done already.

        ValueError when another configuration has been trained here (one that did not come to a first record, for want
        of a file perhaps, is forgotten), or when another process is training here.
        """
        stored = self.path / "config.yaml"
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file; give a folder for the run")
        if stored.is_file() and self._has_begun():
            ignored = incidental_fields(TrainConfig)
            if self._same_batch():
                ignored += per_process_fields(TrainConfig)
            changes = diff_configs(yaml.safe_load(stored.read_text(encoding="utf-8")) or {}, self.config, ignored)
            if changes:
                more = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
                raise ValueError(
                    f"{self.path} holds a run with another configuration; choose another folder or remove it. "
                    f"There -> here: {'; '.join(changes[:NAMED])}{more}"
                )
        if self.model.exists():
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock_for_process(self.path / ".lock")
        except FolderLockedError:
            raise ValueError(
                f"another process is training into {self.path}: wait for it, or give another folder"
            ) from None
        remove_temporary_files(self.path)
        write_text(stored, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        return None

    def _has_begun(self) -> bool:
        """Whether there is something to lose or to go on with."""
        metrics = self.path / "metrics.jsonl"
        return self.model.exists() or self.checkpoints.exists() or (metrics.is_file() and metrics.stat().st_size > 0)

    def _same_batch(self) -> bool:
        """Whether the last launch trained on as many pictures a step, on however many processes."""
        launches = self.path / "launches.jsonl"
        lines = launches.read_text(encoding="utf-8").splitlines() if launches.is_file() else []
        return bool(lines) and json.loads(lines[-1])["pictures_per_step"] == self.launch["pictures_per_step"]

    @contextlib.contextmanager
    def logs(self, step: int, project: str = "") -> Iterator[Callable[[dict[str, float]], None]]:
        """Gives a function that appends a record (with its "step") to metrics.jsonl and TensorBoard, and to W&B.

        It goes on after `step`: records of later steps come from an attempt that was not saved, and are dropped.
        """
        launches = self.path / "launches.jsonl"
        earlier = launches.read_text(encoding="utf-8") if launches.exists() else ""
        write_text(launches, earlier + json.dumps({"step": step} | self.launch) + "\n")
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
            if project:
                online.log(record, step=record["step"])

        folder = str(self.path / "tensorboard")
        with (
            metrics.open("a", encoding="utf-8") as file,
            SummaryWriter(folder, purge_step=step + 1) as board,
            self._online(project) as online,
        ):
            yield log

    @contextlib.contextmanager
    def _online(self, project: str) -> Iterator[Any]:
        """The run in a project of Weights & Biases, the same one after a resume; nothing without a project."""
        if not project:
            yield None
            return
        try:
            import wandb
        except ImportError:
            raise ImportError("logging to Weights & Biases needs a package: pip install 'capfilt[wandb]'") from None
        name = blake2b(str(self.path.resolve()).encode(), digest_size=8).hexdigest()
        run = wandb.init(
            project=project, name=self.path.name, id=name, resume="allow", config=self.config, dir=self.path
        )
        try:
            yield run
        finally:
            run.finish()

    def plot(self) -> None:
        """Draw the losses logged so far."""
        title = f"{self.path.name}: losses by step, each over the interval before"
        write_text(self.path / "losses.svg", draw_losses(read_records(self.path / "metrics.jsonl"), title))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary; the model is written after it, since its presence says that all is done."""
        write_text(self.path / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Of what a result may depend on."""
    packages = ("capfilt", "torch", "numpy", "pillow", "tokenizers", "safetensors")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM, SIGUSR1 and Ctrl-C into a list instead of dying, so that the loop can save and leave.

    A second signal of the same kind has its usual effect, but not under a launcher: it hands on what it gets, so that
    what Slurm or Ctrl-C tells all processes comes twice, and it ends those who do not leave. Outside the main thread
    Python cannot do this; then nothing is collected.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        caught.append(number)
        if "RANK" not in os.environ:
            signal.signal(number, before[number])

    with contextlib.suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
