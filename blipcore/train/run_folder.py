"""The folder of a training run.

config.yaml      the resolved configuration; a relaunch must agree with it
changes.jsonl    one line per `--continue` with another configuration: the step and what was changed
launches.jsonl   one line per launch: first step, versions, number of processes
metrics.jsonl    one record every `log_every` steps; after a resume each step is listed once
losses.svg       the losses as a plot
tensorboard/     the same records for TensorBoard
checkpoints/     see `checkpoint.py`
best/            the best model on the validation set, if there is one; its scores are in best.json
summary.json     the return value of `Trainer.fit`
model/           the trained model; if it exists, the run is done
model-000500/    the model of step 500, with which the run was done before it was continued
.lock            locked by the process that trains here
"""

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from blipcore.io.config_diff import changeable_fields, diff_configs, incidental_fields, per_process_fields
from blipcore.io.lock import FolderLockedError, lock_for_process
from blipcore.io.writing import remove_temporary_files, write_text
from blipcore.train.checkpoint import Checkpoints, remove_folder
from blipcore.train.optim import TrainConfig
from blipcore.train.plot import draw_losses, read_records

# Differences named in an error: a run of another command has a hundred.
MAX_DIFFERENCES = 8


class RunFolder:
    """The folder of a run with the resolved configuration `config`; `launch` describes the processes."""

    def __init__(self, path: Path, config: dict[str, Any], launch: dict[str, Any]) -> None:
        self.path, self.launch = path, launch | package_versions()
        # As YAML reads it back: without tuples and paths.
        self.config = json.loads(json.dumps(config, default=str))
        self.model, self.best, self.checkpoints = path / "model", path / "best", path / "checkpoints"

    def claim(self, may_change: bool = False) -> tuple[dict[str, Any] | None, list[str]]:
        """Lock the folder for this run and write config.yaml; return (None, changes), or (summary, []) of a done run.

        With `may_change`, the settings of later steps may differ from those of the run, which is continued if it is
        done. Raises FolderLockedError if another process trains here, ValueError if the folder holds records,
        checkpoints or a model of another configuration.
        """
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file; give a folder for the run.")
        changes = self._find_changes(may_change) if self._has_progress() else []
        if may_change and not self._has_progress():
            raise ValueError(f"{self.path} holds no run to continue: leave out --continue.")
        if self.model.exists() and not changes:
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8")), []
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock_for_process(self.path / ".lock")
        except FolderLockedError:
            raise FolderLockedError(
                f"Another process is training into {self.path}: wait for it, or give another folder."
            ) from None
        remove_temporary_files(self.path)
        if changes:
            self._record(changes)
        write_text(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        return None, changes

    def _has_progress(self) -> bool:
        metrics = self.path / "metrics.jsonl"
        return self.model.exists() or self.checkpoints.exists() or (metrics.is_file() and metrics.stat().st_size > 0)

    def _find_changes(self, may_change: bool) -> list[str]:
        """Return the differences from the configuration of the run; raise ValueError if they are not allowed."""
        config_file = self.path / "config.yaml"
        if not config_file.is_file():
            return []
        ignored = incidental_fields(TrainConfig)
        if self._same_pictures_per_step():
            ignored += per_process_fields(TrainConfig)
        config = yaml.safe_load(config_file.read_text(encoding="utf-8")) or {}
        changes = diff_configs(config, self.config, ignored)
        if not changes:
            return []
        remaining = len(changes) - MAX_DIFFERENCES
        listed = "; ".join(changes[:MAX_DIFFERENCES]) + (f"; and {remaining} more" if remaining > 0 else "")
        done = self._newest_step()
        fixed = [change for change in changes if not _is_changeable(change)]
        if fixed:
            raise ValueError(
                f"{self.path} holds a run with another configuration; choose another folder or remove it "
                f"(--continue can change validation.*, train.steps, train.lr and the like, not "
                f"{fixed[0].partition(':')[0]}). Stored -> requested: {listed}."
            )
        if done is None:
            raise ValueError(
                f"{self.path} holds a run with another configuration and no checkpoint to continue from; choose "
                f"another folder, and give --init {self.model} to start from its model. Stored -> requested: {listed}."
            )
        if not may_change:
            raise ValueError(
                f"{self.path} holds a run with another configuration; add --continue to go on from its step {done} "
                f"with the new settings, or choose another folder. Stored -> requested: {listed}."
            )
        steps = self.config.get("train", {}).get("steps", 0)
        if 0 < steps < done:
            raise ValueError(f"{self.path} has done {done} steps; train.steps must be at least that, not {steps}.")
        return changes

    def _newest_step(self) -> int | None:
        complete = Checkpoints(self.checkpoints, keep=1).complete()
        return int(complete[-1].name.removeprefix("step-")) if complete else None

    def _record(self, changes: list[str]) -> None:
        """Record changes in changes.jsonl, and move the model of a done run aside, so that it is done no more."""
        step, file = self._newest_step(), self.path / "changes.jsonl"
        earlier = file.read_text(encoding="utf-8") if file.exists() else ""
        write_text(file, earlier + json.dumps({"step": step, "changes": changes}, ensure_ascii=False) + "\n")
        if self.model.exists():
            done_model = self.path / f"model-{step:06d}"
            remove_folder(done_model)  # from an earlier change at the same step
            self.model.rename(done_model)

    def _same_pictures_per_step(self) -> bool:
        """Return whether the last launch had the same number of pictures per step."""
        launches = self.path / "launches.jsonl"
        lines = launches.read_text(encoding="utf-8").splitlines() if launches.is_file() else []
        return bool(lines) and json.loads(lines[-1])["pictures_per_step"] == self.launch["pictures_per_step"]

    @contextlib.contextmanager
    def logs(self, step: int, project: str = "") -> Iterator[Callable[[dict[str, float]], None]]:
        """Yield a function that appends a record (with its "step") to metrics.jsonl, TensorBoard and W&B `project`.

        Drops records of steps after `step`, which a launch has written and not saved.
        """
        launches = self.path / "launches.jsonl"
        earlier_launches = launches.read_text(encoding="utf-8") if launches.exists() else ""
        write_text(launches, earlier_launches + json.dumps({"step": step} | self.launch) + "\n")
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            write_text(metrics, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

        def log(record: dict[str, float]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()
            for name, value in record.items():
                if name != "step":
                    tensorboard.add_scalar(name, value, record["step"])
            if wandb_run is not None:
                wandb_run.log(record, step=record["step"])

        with (
            metrics.open("a", encoding="utf-8") as file,
            SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1) as tensorboard,
            self._wandb_run(project) as wandb_run,
        ):
            yield log

    @contextlib.contextmanager
    def _wandb_run(self, project: str) -> Iterator[Any]:
        """Open or resume the run in a project of Weights & Biases; None without a project."""
        if not project:
            yield None
            return
        try:
            import wandb
        except ImportError:
            raise ImportError("Logging to Weights & Biases needs a package: pip install 'capfilt[wandb]'") from None
        run_id = blake2b(str(self.path.resolve()).encode(), digest_size=8).hexdigest()
        run = wandb.init(
            project=project, name=self.path.name, id=run_id, resume="allow", config=self.config, dir=self.path
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
        """Write the summary. The model must be written after it, since its presence marks the run as done."""
        write_text(self.path / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _is_changeable(change: str) -> bool:
    """Return whether the setting of a line of `diff_configs` concerns later steps alone."""
    section, _, name = change.partition(":")[0].rpartition(".")
    return section.partition(".")[0] == "validation" or (section == "train" and name in changeable_fields(TrainConfig))


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of packages that affect results."""
    packages = ("capfilt", "torch", "numpy", "pillow", "tokenizers", "safetensors")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _step_of(line: str) -> float:
    """Return the step of a line of metrics.jsonl; infinity for a truncated line."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
