"""The folder of a run: its files, its lock, and the refusal of another configuration."""

import contextlib
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import Brightness, Killed, kill_at_batch, read_weights, same_tensors, toy_trainer, untimed_records

from blipcore.io.lock import FolderLockedError
from blipcore.train.run_folder import RunFolder


def tensorboard_losses(out: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_a_run_writes_summary_checkpoints_config_and_tensorboard(shards, tmp_path) -> None:
    summary = toy_trainer(shards, tmp_path).fit()
    records = untimed_records(tmp_path)
    assert summary["steps"] == 12 and summary["pictures"] == 48 and summary["unreadable"] == 0
    assert summary["losses"] == {name: records[-1][name] for name in ("loss", "loss_square")}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000008", "step-000012"]
    assert tensorboard_losses(tmp_path) == [(record["step"], pytest.approx(record["loss"])) for record in records]
    assert "steps: 12" in (tmp_path / "config.yaml").read_text()


def test_a_finished_run_returns_its_summary_without_training(shards, tmp_path) -> None:
    summary = toy_trainer(shards, tmp_path).fit()
    again = toy_trainer(shards, tmp_path)
    assert again.fit() == summary and again.task.batch_keys == []


def test_a_run_killed_between_summary_and_model_is_not_finished(shards, tmp_path, monkeypatch) -> None:
    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Brightness, "save", kill)
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path).fit()
    monkeypatch.undo()
    again = toy_trainer(shards, tmp_path)
    again.fit()
    assert again.task.batch_keys == [] and (tmp_path / "model" / "model.pt").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_another_configuration_is_refused_with_its_differences(shards, tmp_path, finished) -> None:
    if finished:
        toy_trainer(shards, tmp_path).fit()
    else:
        with pytest.raises(Killed):
            toy_trainer(shards, tmp_path, kill_at_batch(6)).fit()
    with pytest.raises(ValueError, match=r"another configuration.*Stored -> requested: train.lr: 0.01 -> 0.02"):
        toy_trainer(shards, tmp_path, lr=0.02).fit()
    # None of these changes the result.
    assert toy_trainer(shards, tmp_path, workers=1, save_every=3, log_every=2, keep=1).fit()["steps"] == 12


@pytest.mark.parametrize("finished", [False, True])
def test_settings_of_later_steps_change_on_request_and_are_recorded(shards, tmp_path, finished) -> None:
    on_batch = None if finished else kill_at_batch(6)
    with contextlib.suppress(Killed):
        toy_trainer(shards, tmp_path, on_batch).fit()
    done = 12 if finished else 4
    with pytest.raises(ValueError, match=f"add --continue to go on from its step {done} with the new settings"):
        toy_trainer(shards, tmp_path, steps=16, lr=0.02).fit()

    continued = toy_trainer(shards, tmp_path, may_change=True, steps=16, lr=0.02)
    assert continued.fit()["steps"] == 16 and len(continued.task.batch_keys) == 16 - done
    changes = ["train.steps: 12 -> 16", "train.lr: 0.01 -> 0.02"]
    assert json.loads((tmp_path / "changes.jsonl").read_text()) == {"step": done, "changes": changes}
    assert (tmp_path / "model-000012" / "model.pt").exists() == finished
    assert "steps: 16" in (tmp_path / "config.yaml").read_text()
    # From now on the new settings are those of the run.
    assert toy_trainer(shards, tmp_path, steps=16, lr=0.02).fit()["steps"] == 16
    with pytest.raises(ValueError, match=r"train\.steps: 16 -> 12"):
        toy_trainer(shards, tmp_path).fit()


def test_a_run_killed_after_its_continuation_began_has_the_new_number_of_steps(shards, tmp_path) -> None:
    toy_trainer(shards, tmp_path).fit()
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(1), may_change=True, steps=16).fit()
    assert toy_trainer(shards, tmp_path, steps=16).fit()["steps"] == 16


def test_a_continued_run_trains_the_weights_of_a_longer_one(shards, tmp_path) -> None:
    toy_trainer(shards, tmp_path / "long", steps=16, schedule="constant").fit()
    toy_trainer(shards, tmp_path / "short", steps=6, schedule="constant").fit()
    toy_trainer(shards, tmp_path / "short", steps=16, schedule="constant", may_change=True).fit()
    assert same_tensors(read_weights(tmp_path / "long"), read_weights(tmp_path / "short"))


def test_epochs_may_be_added_to_a_run(shards, tmp_path) -> None:
    toy_trainer(shards, tmp_path, steps=0, epochs=1).fit()
    continued = toy_trainer(shards, tmp_path, may_change=True, steps=0, epochs=1.5)
    assert continued.fit()["pictures"] == 60 and len(continued.task.batch_keys) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 2, "lr": 0.02}, r"another configuration.*not train.batch_size\)"),
        ({"steps": 8}, "has done 12 steps; train.steps must be at least that, not 8"),
    ],
)
def test_what_cannot_change_is_refused_and_the_run_stays_as_it_is(shards, tmp_path, settings, message) -> None:
    toy_trainer(shards, tmp_path).fit()
    with pytest.raises(ValueError, match=message):
        toy_trainer(shards, tmp_path, may_change=True, **settings).fit()
    assert toy_trainer(shards, tmp_path).fit()["steps"] == 12 and not (tmp_path / "changes.jsonl").exists()


def test_nothing_to_continue_is_an_error(shards, tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no run to continue: leave out --continue"):
        toy_trainer(shards, tmp_path / "run", may_change=True).fit()


def test_a_run_without_checkpoints_names_its_model_as_a_start(shards, tmp_path) -> None:
    toy_trainer(shards, tmp_path).fit()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"no checkpoint to continue from.*give --init .*model to start"):
        toy_trainer(shards, tmp_path, may_change=True, steps=16).fit()


def test_an_error_names_a_few_of_many_differences(tmp_path) -> None:
    RunFolder(tmp_path, {str(number): number for number in range(20)}, {}).claim()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"Stored -> requested: 0: 0 -> 'x'; .*; 7: 7 -> 'x'; and 12 more\.$"):
        RunFolder(tmp_path, {str(number): "x" for number in range(20)}, {}).claim()


def test_the_configuration_of_a_run_without_progress_does_not_count(tmp_path) -> None:
    RunFolder(tmp_path, {"lr": 1.0}, {}).claim()
    assert RunFolder(tmp_path, {"lr": 2.0}, {}).claim() == (None, [])
    assert (tmp_path / "config.yaml").read_text() == "lr: 2.0\n"


def test_a_file_is_no_run_folder(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder for the run"):
        RunFolder(tmp_path / "file", {}, {}).claim()


def test_two_processes_cannot_train_into_one_folder(shards, tmp_path) -> None:
    lock = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", lock, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(FolderLockedError, match="Another process is training into"):
            toy_trainer(shards, tmp_path).fit()
        other.communicate(b"\n")
    assert toy_trainer(shards, tmp_path).fit()["steps"] == 12


def test_records_after_the_last_checkpoint_are_dropped_on_resume(shards, tmp_path) -> None:
    """The run resumes from step 8, so step 10 is logged twice."""
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(11)).fit()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    toy_trainer(shards, tmp_path).fit()
    assert [record["step"] for record in untimed_records(tmp_path)] == [5, 10, 12]
    assert [step for step, _ in tensorboard_losses(tmp_path)] == [5, 10, 12]


def test_each_launch_is_recorded_and_losses_are_drawn(shards, tmp_path) -> None:
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(6)).fit()
    toy_trainer(shards, tmp_path).fit()
    launches = [json.loads(line) for line in (tmp_path / "launches.jsonl").read_text().splitlines()]
    assert [launch["step"] for launch in launches] == [0, 4]
    assert launches[0]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert launches[0]["processes"] == 1 and launches[0]["pictures_per_step"] == 4
    drawing = ElementTree.fromstring((tmp_path / "losses.svg").read_text())
    assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == 2  # loss and loss_square


def test_the_batch_size_may_change_if_the_pictures_per_step_do_not(shards, tmp_path) -> None:
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(6)).fit()
    with pytest.raises(ValueError, match=r"train.batch_size: 4 -> 2"):
        toy_trainer(shards, tmp_path, batch_size=2).fit()
    assert toy_trainer(shards, tmp_path, batch_size=2, accumulate=2).fit()["pictures"] == 48


def test_weights_and_biases_gets_the_records(shards, tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    toy_trainer(shards, tmp_path / "run", wandb="capfilt").fit()
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert all(name.encode() in log.read_bytes() for name in untimed_records(tmp_path / "run")[0])


def test_without_weights_and_biases_the_error_names_the_package(shards, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[wandb\]'"):
        toy_trainer(shards, tmp_path, wandb="capfilt").fit()
