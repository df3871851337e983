"""A task on pixels that trains in seconds, and its trainer: for tests of the training loop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blipcore.data.stream import Stream
from blipcore.data.transforms import TrainTransform
from blipcore.model.vit import normalise_pixels
from blipcore.train.optim import TrainConfig
from blipcore.train.trainer import Trainer

TIMED = ("seconds", "images_per_second", "data_wait_share", "memory_gb")


def collate(samples: list[dict]) -> dict:
    return {
        "keys": [sample["key"] for sample in samples],
        "pixels": torch.stack([sample["image"] for sample in samples]),
        "numbers": torch.tensor([float(sample["text"]) for sample in samples]),
    }


class Brightness(nn.Module):
    """Regresses the number in the text, with dropout, a momentum copy and a queue: every kind of training state.

    `batch_keys` lists the keys of each batch; `on_batch` is called with the task and the batch.
    """

    def __init__(self, on_batch: "OnBatch | None" = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.slow = nn.Linear(16, 1).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(6))
        self.collate = collate
        self.on_batch = on_batch
        self.batch_keys: list[list[str]] = []

    def before_step(self, progress: Any) -> None:
        self.slow.weight.lerp_(self.model[3].weight.detach(), 0.1)
        assert 0 <= progress.fraction < 1

    def forward(self, batch: dict, progress: Any) -> dict:
        self.batch_keys.append(batch["keys"])
        if self.on_batch:
            self.on_batch(self, batch)
        guess = self.model(normalise_pixels(batch["pixels"]))[:, 0]
        loss = (guess - batch["numbers"]).square().mean() + 0.01 * self.queue.sum()
        return {"loss": loss, "loss_square": loss.detach(), "guess": guess}

    def after_step(self, outputs: list[dict]) -> None:
        new = torch.cat([output["guess"] for output in outputs])
        self.queue = torch.cat([self.queue, new])[-6:].float()

    def save(self, folder: Path, model: nn.Module) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), folder / "model.pt")


OnBatch = Callable[[Brightness, dict], None]


def toy_trainer(
    shards: Path,
    out: Path,
    on_batch: OnBatch | None = None,
    may_change: bool = False,
    validation: dict[str, Any] | None = None,
    **changes: Any,
) -> Trainer:
    """Return a trainer of 12 steps of 4 pictures, with a record every 5 steps and a checkpoint every 4."""
    settings = {"steps": 12, "batch_size": 4, "lr": 1e-2, "log_every": 5, "save_every": 4, "dtype": "fp32"} | changes
    config = TrainConfig(device="cpu", **settings)
    stream = Stream([str(shards)], TrainTransform(8, 0.5, False, 0.5), seed=config.seed)
    return Trainer(
        Brightness(on_batch), stream, config, out, {"train": settings, "validation": validation}, may_change=may_change
    )


def read_weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "model" / "model.pt", weights_only=True)


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def untimed_records(out: Path) -> list[dict]:
    """Return the records of metrics.jsonl without times and memory."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMED} for line in lines]


class Killed(Exception):
    """Stands for SIGKILL: ends the run without any clean-up."""


def kill_at_batch(number: int) -> OnBatch:
    def on_batch(task: Brightness, batch: dict) -> None:
        if len(task.batch_keys) == number:
            raise Killed

    return on_batch
