"""The loop on a small task of its own: exact resume, signals, bad losses, what is written."""

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import blipcore.model.convert
from blipcore.data.stream import Stream
from blipcore.data.transforms import train_transform
from blipcore.train.trainer import NonFiniteLossError, TrainConfig, Trainer


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
        folder.mkdir()
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
        guess = self.model(batch["pixels"])[:, 0]
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
    timed = ("seconds", "images_per_second", "data_wait_share")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


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
