"""The loop on a small task of its own: exact resume, signals, bad losses, what is written."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import blipcore.checkpoints.load
from blipcore.data import stream as stream_module
from blipcore.data.stream import Stream
from blipcore.data.transforms import train_transform
from blipcore.model.vit import normalise_pixels
from blipcore.train import trainer as trainer_module
from blipcore.train.checkpoint import random_state
from blipcore.train.finite import NonFiniteLossError
from blipcore.train.optim import TrainConfig
from blipcore.train.trainer import Trainer
from blipcore.train.validation import Validator


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Two shards of 20 pictures whose text is a number that can be learned from the picture's brightness."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(20):
                buffer = io.BytesIO()
                Image.new("RGB", (12, 12), (12 * row, 100 * shard, 0)).save(buffer, "PNG")
                for name, data in (("png", buffer.getvalue()), ("txt", str(row / 20).encode())):
                    member = tarfile.TarInfo(f"{shard}{row:04d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(autouse=True)
def saved_models(monkeypatch) -> None:
    """The task below is no BLIP: its model is saved as a plain state dict."""

    def save_model(folder: Path, model: nn.Module, tokenizer: object) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), folder / "model.pt")

    monkeypatch.setattr(blipcore.model.convert, "save_model", save_model)


def collate(samples: list[dict]) -> dict:
    return {
        "keys": [sample["key"] for sample in samples],
        "pixels": torch.stack([sample["image"] for sample in samples]),
        "numbers": torch.tensor([float(sample["text"]) for sample in samples]),
    }


class Brightness(nn.Module):
    """Regresses the number, with dropout, a momentum copy and a queue, so that every kind of state is there."""

    tokenizer = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.slow = nn.Linear(16, 1).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(6))
        self.collate = collate
        self.on_batch = lambda task, batch: None
        self.seen: list[list[str]] = []

    def before_step(self, progress) -> None:
        self.slow.weight.lerp_(self.model[3].weight.detach(), 0.1)
        assert 0 <= progress.fraction < 1

    def forward(self, batch: dict, progress) -> dict:
        self.seen.append(batch["keys"])
        self.on_batch(self, batch)
        guess = self.model(normalise_pixels(batch["pixels"]))[:, 0]
        loss = (guess - batch["numbers"]).square().mean() + 0.01 * self.queue.sum()
        return {"loss": loss, "loss_square": loss.detach(), "guess": guess}

    def after_step(self, outputs: list[dict]) -> None:
        new = torch.cat([output["guess"] for output in outputs])
        self.queue = torch.cat([self.queue, new])[-6:].float()


def trainer(shards: Path, out: Path, on_batch=None, **changes) -> Trainer:
    settings = {"steps": 12, "batch_size": 4, "lr": 1e-2, "log_every": 5, "save_every": 4, "dtype": "fp32"} | changes
    config = TrainConfig(device="cpu", **settings)
    task = Brightness()
    task.on_batch = on_batch or task.on_batch
    stream = Stream([str(shards)], train_transform(8, 0.5, False, 0.5), seed=config.seed)
    return Trainer(task, stream, config, out, {"train": settings})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "model" / "model.pt", weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(out: Path) -> list[dict]:
    """The part of metrics.jsonl that does not tell the time."""
    timed = ("seconds", "images_per_second", "data_wait_share", "memory_gb")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def board(out: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows as the loss."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


class Killed(Exception):
    """Stands for SIGKILL: the run ends here and nothing is tidied up."""


def kill_at(batch_number: int):
    def on_batch(task: Brightness, batch: dict) -> None:
        if len(task.seen) == batch_number:
            raise Killed

    return on_batch


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step", [3, 7, 12])
def test_a_killed_run_resumes_bit_for_bit(shards, tmp_path, step, accumulate):
    whole = trainer(shards, tmp_path / "whole", accumulate=accumulate)
    whole.fit()
    with pytest.raises(Killed):
        trainer(shards, tmp_path / "cut", kill_at(step * accumulate), accumulate=accumulate).fit()
    resumed = trainer(shards, tmp_path / "cut", accumulate=accumulate)
    resumed.fit()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert torch.equal(whole.task.queue, resumed.task.queue)
    assert records(tmp_path / "whole") == records(tmp_path / "cut")
    assert [record["step"] for record in records(tmp_path / "cut")] == [5, 10, 12]
    assert whole.task.seen[-len(resumed.task.seen) :] == resumed.task.seen  # no sample twice, none left out


def test_workers_and_logging_do_not_change_the_result(shards, tmp_path):
    trainer(shards, tmp_path / "alone").fit()
    trainer(shards, tmp_path / "workers", workers=1, log_every=3, save_every=7, keep=1).fit()
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "workers"))


def test_what_a_run_leaves_behind(shards, tmp_path):
    summary = trainer(shards, tmp_path).fit()
    assert summary["steps"] == 12 and summary["pictures"] == 48 and summary["unreadable"] == 0
    assert summary["losses"] == {name: records(tmp_path)[-1][name] for name in ("loss", "loss_square")}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000008", "step-000012"]
    assert board(tmp_path) == [(record["step"], pytest.approx(record["loss"])) for record in records(tmp_path)]
    assert "steps: 12" in (tmp_path / "config.yaml").read_text()


def test_logged_losses_are_means_over_the_interval(shards, tmp_path):
    run = trainer(shards, tmp_path, accumulate=2, log_every=4)
    losses: list[float] = []
    forward = run.task.forward
    run.task.forward = lambda batch, progress: losses.append((out := forward(batch, progress))["loss"].item()) or out
    run.fit()
    expected = [sum(losses[start : start + 8]) / 8 for start in (0, 8, 16)]
    assert [record["loss"] for record in records(tmp_path)] == pytest.approx(expected, rel=1e-5)


def test_a_finished_run_says_so_at_once(shards, tmp_path):
    summary = trainer(shards, tmp_path).fit()
    again = trainer(shards, tmp_path)
    assert again.fit() == summary and again.task.seen == []


def test_a_run_killed_between_summary_and_model_is_not_done(shards, tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise Killed

    save_model = blipcore.model.convert.save_model
    monkeypatch.setattr(blipcore.model.convert, "save_model", killed)
    with pytest.raises(Killed):
        trainer(shards, tmp_path).fit()
    monkeypatch.setattr(blipcore.model.convert, "save_model", save_model)
    again = trainer(shards, tmp_path)
    again.fit()
    assert again.task.seen == [] and (tmp_path / "model" / "model.pt").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_another_configuration_is_refused_with_the_difference(shards, tmp_path, finished):
    if finished:
        trainer(shards, tmp_path).fit()
    else:
        with pytest.raises(Killed):
            trainer(shards, tmp_path, kill_at(6)).fit()
    with pytest.raises(ValueError, match=r"another configuration.*train.lr: 0.01 -> 0.02"):
        trainer(shards, tmp_path, lr=0.02).fit()
    trainer(shards, tmp_path, workers=1, save_every=3, log_every=2, keep=1).fit()  # none of which changes the result


def test_two_processes_do_not_train_into_one_folder(shards, tmp_path):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process is training into"):
            trainer(shards, tmp_path).fit()
        other.communicate(b"\n")
    trainer(shards, tmp_path).fit()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_leaves(shards, tmp_path, number, capfd):
    def interrupt(task: Brightness, batch: dict) -> None:
        if len(task.seen) == 7:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    trainer(shards, tmp_path / "whole").fit()
    with pytest.raises(SystemExit) as left:
        trainer(shards, tmp_path / "cut", interrupt).fit()
    assert left.value.code == 128 + number and signal.getsignal(number) is handler
    assert "stopped and saved at step 7; run the same command again" in capfd.readouterr().err
    resumed = trainer(shards, tmp_path / "cut")
    resumed.fit()
    assert len(resumed.task.seen) == 5
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_a_launcher_hands_a_signal_on_and_so_it_comes_twice(shards, tmp_path, monkeypatch):
    def interrupt(task: Brightness, batch: dict) -> None:
        if len(task.seen) == 7:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        trainer(shards, tmp_path, interrupt).fit()
    assert (tmp_path / "checkpoints" / "step-000007").is_dir()


def spoil(*batch_numbers: int):
    """Make what some batches are compared with NaN."""

    def on_batch(task: Brightness, batch: dict) -> None:
        if len(task.seen) in batch_numbers:
            batch["numbers"].fill_(torch.nan)

    return on_batch


@pytest.mark.parametrize("look_at_once", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_pictures(shards, tmp_path, look_at_once):
    run = trainer(shards, tmp_path, spoil(6))
    run.look_at_once = look_at_once  # False is what a GPU does: it looks when it has to wait anyway
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 5; the pictures of its batch: ") as error:
        run.fit()
    assert ", ".join(run.task.seen[5]) in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    trainer(shards, tmp_path).fit()  # the good checkpoint is there to go on from


def test_a_gradient_that_is_not_finite_counts_too_when_clipping(shards, tmp_path):
    run = trainer(shards, tmp_path, clip=1.0)
    run.task.model[1].weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteLossError, match="step 0"):
        run.fit()


def test_bad_steps_can_be_skipped(shards, tmp_path):
    run = trainer(shards, tmp_path, spoil(2, 6), nonfinite="skip")
    summary = run.fit()
    assert summary["skipped_steps"] == 2 and summary["steps"] == 12
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    assert run.task.queue.isfinite().all()
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path))


def test_a_gradient_that_is_not_finite_is_skipped_too(shards, tmp_path):
    run = trainer(shards, tmp_path, nonfinite="skip", steps=3)
    run.task.model[1].weight.register_hook(lambda gradient: gradient * (torch.nan if len(run.task.seen) == 2 else 1))
    assert run.fit()["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_skipping_ends_where_no_step_is_good(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_SKIPPED", 5)
    run = trainer(shards, tmp_path, spoil(2, 3, *range(6, 100)), nonfinite="skip")
    with pytest.raises(NonFiniteLossError, match="5 steps in a row, up to step 9, had a loss"):
        run.fit()


def test_weights_that_are_not_finite_are_not_saved(shards, tmp_path):
    """The loss of the step that broke them was a number, so no look at losses tells."""
    run = trainer(shards, tmp_path)
    run.task.model[1].weight.register_hook(lambda gradient: gradient * (torch.nan if len(run.task.seen) == 8 else 1))
    with pytest.raises(NonFiniteLossError, match="not finite after step 8"):
        run.fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


def test_clipping_bounds_the_step(shards, tmp_path):
    norms = []

    def on_batch(task: Brightness, batch: dict) -> None:
        batch["numbers"] += 1000.0

    run = trainer(shards, tmp_path, on_batch, clip=0.5, steps=2)
    run.task.after_step = lambda outputs: norms.append(
        torch.stack([p.grad.norm() for p in run.task.parameters() if p.grad is not None]).norm().item()
    )
    run.fit()
    assert norms == pytest.approx([0.5, 0.5], rel=1e-3)


def test_micro_batches_add_up_to_the_whole_batch(shards, tmp_path):
    """Without dropout and queue, two micro-batches of 4 step like one batch of 8."""
    gradients = []
    for folder, changes in (("one", {"batch_size": 8}), ("two", {"batch_size": 4, "accumulate": 2})):
        run = trainer(shards, tmp_path / folder, steps=1, **changes)
        run.task.model[2].p = 0.0
        run.task.after_step = lambda outputs, run=run: gradients.append(run.task.model[1].weight.grad.clone())
        run.fit()
    torch.testing.assert_close(*gradients)


def test_unreadable_pictures_are_reported_at_the_end(shards, tmp_path, capfd):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    data = bytearray((broken / "00001.tar").read_bytes())
    data[512:530] = bytes(18)  # the first picture's signature
    (broken / "00001.tar").write_bytes(data)
    with pytest.raises(Killed):
        trainer(broken, tmp_path / "run", kill_at(11)).fit()
    summary = trainer(broken, tmp_path / "run").fit()
    assert summary["unreadable"] == 1
    assert summary["problems"] == {"00001.tar/10000": "no known picture format"}
    assert "unreadable, replaced by the next: 00001.tar/10000" in capfd.readouterr().err


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(shards, tmp_path, capfd):
    trainer(shards, tmp_path / "whole").fit()
    with pytest.raises(Killed):
        trainer(shards, tmp_path / "cut", kill_at(11)).fit()
    next((tmp_path / "cut/checkpoints/step-000008").glob("*.safetensors")).write_bytes(b"half")
    trainer(shards, tmp_path / "cut").fit()
    said = capfd.readouterr().err
    assert "step-000008 is damaged and passed over" in said and "going on from step 4 of 12" in said
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_what_was_logged_after_the_checkpoint_is_dropped(shards, tmp_path):
    with pytest.raises(Killed):
        trainer(shards, tmp_path, kill_at(11)).fit()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    trainer(shards, tmp_path).fit()  # goes on from step 8, so that step 10 was logged twice
    assert [record["step"] for record in records(tmp_path)] == [5, 10, 12]
    assert [step for step, _ in board(tmp_path)] == [5, 10, 12]


def test_epochs_become_steps(shards, tmp_path):
    summary = trainer(shards, tmp_path, steps=0, epochs=0.5).fit()
    assert summary["steps"] == 5  # 40 pictures in batches of 4


def test_epochs_that_went_on_with_other_processes_are_still_counted_after_a_second_kill(shards, tmp_path):
    """Four steps of two processes with 4 pictures each leave 8 of the 40 pictures: two steps of one process."""
    epoch = {"steps": 0, "epochs": 1.0, "save_every": 1}
    with pytest.raises(Killed):
        trainer(shards, tmp_path, kill_at(5), **epoch).fit()
    state = tmp_path / "checkpoints" / "step-000004" / "state.json"
    readable = json.loads(state.read_text())
    state.write_text(json.dumps(readable | {"sums": readable["sums"] * 2, "position": 32}))
    with pytest.raises(Killed):
        trainer(shards, tmp_path, kill_at(2), **epoch).fit()
    summary = trainer(shards, tmp_path, **epoch).fit()
    assert (summary["steps"], summary["pictures"]) == (6, 40)


def test_a_run_goes_on_where_there_is_another_random_generator(shards, tmp_path, monkeypatch):
    """As on a GPU after a CPU."""
    with pytest.raises(Killed):
        trainer(shards, tmp_path, kill_at(5)).fit()
    monkeypatch.setattr(trainer_module, "random_state", lambda device: random_state(device) | {"more": torch.zeros(9)})
    assert trainer(shards, tmp_path).fit()["steps"] == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_is_gone_is_one_sentence(shards, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(stream_module, "MAX_REPLACEMENTS", 3)
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    run = trainer(broken, tmp_path / "run", workers=workers)
    for tar in broken.iterdir():
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(ValueError, match=r"^3 pictures in a row of .* cannot be read") as error:
        run.fit()
    assert "Traceback" not in str(error.value)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_live_line_on_a_terminal(shards, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    trainer(shards, tmp_path).fit()
    last = terminal.getvalue().rsplit("step ", 1)[1]
    assert last.startswith("12/12") and "img/s" in last and "square" in last and "lr" in last


def test_plain_lines_elsewhere(shards, tmp_path, capfd):
    trainer(shards, tmp_path).fit()
    out, err = capfd.readouterr()
    assert out == ""  # stdout belongs to the command's own answer
    assert [line.split()[1] for line in err.splitlines()] == ["5/12", "10/12", "12/12"]


def test_the_best_model_on_the_validation_set_is_kept(shards, tmp_path):
    """Here the second of four; a run that was killed judges the same models and keeps the same one."""

    def judged(scores: list[float], on_batch=None) -> Trainer:
        values = iter(scores)
        torch.manual_seed(0)
        run = trainer(shards, tmp_path / "run", on_batch)
        run.judge = Validator(lambda model: {"a": next(values), "b": torch.rand(()).item() * 0}, ("a", "b"), every=4)
        return run

    with pytest.raises(Killed):
        judged([1.0, 3.0], kill_at(9)).fit()
    kept = (tmp_path / "run/best/model.pt").read_bytes()
    summary = judged([2.0]).fit()  # goes on from step 8, whose best is the state's
    assert summary["best"] == {"step": 8, "value": 3.0, "a": 3.0, "b": 0.0}
    assert json.loads((tmp_path / "run/best.json").read_text()) == summary["best"]
    assert (tmp_path / "run/best/model.pt").read_bytes() == kept != (tmp_path / "run/model/model.pt").read_bytes()
    judgements = [record for record in records(tmp_path / "run") if "val_a" in record]
    assert [(record["step"], record["val_a"]) for record in judgements] == [(4, 1.0), (8, 3.0), (12, 2.0)]
    trainer(shards, tmp_path / "unjudged").fit()
    assert same(weights(tmp_path / "run"), weights(tmp_path / "unjudged"))  # judging draws from no generator


def test_a_judgement_that_fails_loses_no_step_and_is_made_up_for(shards, tmp_path):
    judged = []

    def scores(model) -> dict[str, float]:
        torch.rand(3)  # where it fails it may have drawn
        if not judged:
            raise FileNotFoundError("the validation pictures are not there")
        return {"a": judged.pop(0)}

    def run() -> Trainer:
        run = trainer(shards, tmp_path / "run")
        run.judge = Validator(scores, ("a",), every=6)
        return run

    with pytest.raises(FileNotFoundError, match="not there"):
        run().fit()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-000006"
    judged = [3.0]
    with pytest.raises(FileNotFoundError, match="not there"):  # of the last step
        run().fit()
    judged = [2.0]
    assert run().fit()["best"]["step"] == 6
    assert [(r["step"], r["val_a"]) for r in records(tmp_path / "run") if "val_a" in r] == [(6, 3.0), (12, 2.0)]
    trainer(shards, tmp_path / "unjudged").fit()
    assert same(weights(tmp_path / "run"), weights(tmp_path / "unjudged"))


def test_frozen_parameters_stay(shards, tmp_path):
    run = trainer(shards, tmp_path, freeze=["1.*", "3.bia?"])
    before = {name: value.clone() for name, value in run.task.model.state_dict().items()}
    run.fit()
    assert [name for name in before if not torch.equal(before[name], weights(tmp_path)[name])] == ["3.weight"]
    with pytest.raises(ValueError, match=r"nothing to freeze is called 'text\.\*'; the model has, for ex.* 1\.bias"):
        trainer(shards, tmp_path / "other", freeze=["text.*"]).fit()


def test_a_launch_leaves_its_versions_and_the_losses_as_a_picture(shards, tmp_path):
    with pytest.raises(Killed):
        trainer(shards, tmp_path, kill_at(6)).fit()
    trainer(shards, tmp_path).fit()
    launches = [json.loads(line) for line in (tmp_path / "launches.jsonl").read_text().splitlines()]
    assert [launch["step"] for launch in launches] == [0, 4]
    assert launches[0]["torch"] == torch.__version__.split("+")[0] or launches[0]["torch"] == torch.__version__
    assert launches[0]["processes"] == 1 and launches[0]["pictures_per_step"] == 4
    drawing = ElementTree.fromstring((tmp_path / "losses.svg").read_text())
    assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == 2  # loss and loss_square


def test_the_batch_of_a_process_may_change_if_that_of_a_step_does_not(shards, tmp_path):
    with pytest.raises(Killed):
        trainer(shards, tmp_path, kill_at(6)).fit()
    with pytest.raises(ValueError, match=r"train.batch_size: 4 -> 2"):
        trainer(shards, tmp_path, batch_size=2).fit()
    assert trainer(shards, tmp_path, batch_size=2, accumulate=2).fit()["pictures"] == 48


def test_weights_and_biases_is_told_what_metrics_says(shards, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer(shards, tmp_path / "run", wandb="capfilt").fit()
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert all(name.encode() in log.read_bytes() for name in records(tmp_path / "run")[0])


def test_weights_and_biases_is_an_extra(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[wandb\]'"):
        trainer(shards, tmp_path, wandb="capfilt").fit()
