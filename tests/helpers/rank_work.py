"""Work for the processes of `on_ranks`, which import this file by its name."""

import gc
import os
import signal
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from blipcore import distributed
from blipcore.data.loader import make_loader
from blipcore.data.stream import Stream
from blipcore.data.transforms import TrainTransform
from blipcore.device import memory_gb
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Progress, Task
from blipcore.train.checkpoint import Checkpoints
from blipcore.train.optim import Parallel, TrainConfig, make_adamw
from blipcore.train.parallel import (
    average_unsharded_gradients,
    clip_gradients,
    gradient_sync,
    parallelize,
    unsharded_model,
)
from blipcore.train.trainer import Trainer

WORDS = ["a", "red", "blue", "green", "dog", "cat", "and"]
TEXTS = ["a red dog", "a blue cat and a dog", "a green dog", "red", "blue", "a cat", "a green cat and a red dog", "dog"]
IMAGE_IDS = [0, 1, 2, 3, 0, 4, 5, 1]  # pictures 0 and 1 have a text on each of two processes


def tiny_task(name: str, text: dict[str, Any] | None = None, **options: Any) -> Task:
    """Return a task on a random model; `text` overrides sizes of the text model, `options` settings of the task."""
    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    vision = replace(config.vision, image_size=16, width=32, depth=2, heads=2)
    sizes = {"vocab_size": len(tokenizer), "width": 32, "heads": 2, "hidden": 64, "encoder_width": 32} | (text or {})
    model = Blip(replace(config, vision=vision, text=replace(config.text, **sizes), embed_dim=16))
    if name == "caption":
        return CaptioningTask(model.select_parts("decode"), tokenizer, CaptioningConfig(prompt="a ", **options))
    if name == "retrieval":
        model = model.select_parts("encode", "itc", "itm")
        return RetrievalTask(model, tokenizer, RetrievalConfig(queue_size=12, **options))
    return PretrainTask(model, tokenizer, PretrainConfig(queue_size=12, **options))


def samples() -> list[dict[str, Any]]:
    """Return eight samples; three have judged texts, of unequal number in the halves of the batch."""
    noise = torch.Generator().manual_seed(1)
    rows: list[dict[str, Any]] = [
        {"key": str(row), "image": torch.randn(3, 16, 16, generator=noise), "text": text, "image_id": IMAGE_IDS[row]}
        for row, text in enumerate(TEXTS)
    ]
    for row, count in ((0, 2), (2, 2), (5, 1)):
        image = torch.randn(3, 16, 16, generator=noise)
        rows[row]["judged"] = {"image": image, "texts": TEXTS[:count], "matches": [True, False][:count]}
    return rows


def train_in_turn(scenarios: list[tuple]) -> list[dict[str, Any]]:
    """Run `train_two_steps` for each (name, parallel, micro_batch, options)."""
    return [train_two_steps(name, parallel, micro, **options) for name, parallel, micro, options in scenarios]


def train_two_steps(
    name: str, parallel: Parallel, micro_batch: int, clip: float = 0.0, **options: Any
) -> dict[str, Any]:
    """Return losses, first gradients and final state of two steps on all samples, `micro_batch` per process at once."""
    task = tiny_task(name, **options)
    module = parallelize(task.train(), parallel)
    # The gradient of key biases is rounding error alone, which Adam would scale to full steps with its usual eps.
    optimizer = make_adamw(task, TrainConfig(lr=1e-3, eps=1e-4))
    rank, ranks = distributed.rank(), distributed.world_size()
    starts = range(rank * micro_batch, len(TEXTS), ranks * micro_batch)
    batches = [task.collate(samples()[start : start + micro_batch]) for start in starts]
    if micro_batch < 4:  # some micro-batches would have no judged text
        batches = [{key: x for key, x in batch.items() if not key.startswith("judged")} for batch in batches]
    result: dict[str, Any] = {"losses": []}
    for step in range(2):
        task.before_step(Progress(step, 2))
        outputs = []
        for number, batch in enumerate(batches):
            with gradient_sync(module, enabled=number == len(batches) - 1):
                out = module(batch, Progress(step, 2))
                (out["loss"] / len(batches)).backward()
            outputs.append({key: value.detach() for key, value in out.items()})
        average_unsharded_gradients(task)
        if clip:
            result["norm"] = clip_gradients(task, clip)
        names = [key for key in outputs[0] if key.startswith("loss")]
        losses = torch.stack([torch.stack([out[key] for out in outputs]).mean() for key in names])
        result["losses"].append(dict(zip(names, distributed.mean_over_ranks(losses).tolist(), strict=True)))
        gradients = {key: unsharded(p.grad) for key, p in task.named_parameters() if p.requires_grad}
        result.setdefault("gradients", gradients)
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(outputs)
    result["state"] = {key: unsharded(value) for key, value in task.state_dict().items()}
    exported = unsharded_model(task).state_dict()
    if distributed.is_main():
        result["exported"] = {key: value.clone() for key, value in exported.items()}
    return result


def unsharded(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


class Fatal(NamedTuple):
    """The signal that ends process `rank` of `train_run`: at `point` of step `step` or of the next save."""

    rank: int
    step: int
    point: Literal["before", "after", "write", "publish"] = "before"
    signal: int = signal.SIGKILL


def train_run(
    data: Path, out: Path, fatal: Fatal | None = None, parallel: Parallel = "ddp", **changes: Any
) -> tuple[dict[str, Any], list[str]]:
    """Train 11 steps with dropout, random negatives and a save every 4; return the summary and the keys of samples."""
    settings = {"steps": 11, "batch_size": 4, "lr": 1e-3, "log_every": 3, "save_every": 4, "seed": 5} | changes
    config = TrainConfig(device="cpu", dtype="fp32", parallel=parallel, **settings)
    task = tiny_task("pretrain", text={"dropout": 0.1})
    keys: list[str] = []
    task.collate = RecordingCollate(task.collate, keys)
    if fatal and fatal.rank == distributed.rank():
        kill_at_point(task, fatal)
    stream = Stream([str(data)], TrainTransform(16, 0.5, False, 0.5), config.seed)
    return Trainer(task, stream, config, out, {"run": "test"}).fit(), keys


class RecordingCollate:
    """Collates, and adds the keys to a list."""

    def __init__(self, collate: Any, keys: list[str]) -> None:
        self.collate, self.keys = collate, keys

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        self.keys += [sample["key"] for sample in samples]
        return self.collate(samples)


def kill_at_point(task: Task, fatal: Fatal) -> None:
    """Make this process end at the point of `fatal`."""
    owner, name = {
        "before": (task, "before_step"),
        "after": (task, "after_step"),
        "write": (HuggingFaceStorageWriter, "write_data"),
        "publish": (Checkpoints, "_publish"),
    }[fatal.point]
    original, original_before_step = getattr(owner, name), task.before_step
    last_step = -1

    def before_step(progress: Progress) -> None:
        nonlocal last_step
        last_step = progress.step
        if fatal.point == "before" and progress.step == fatal.step:
            os.kill(os.getpid(), fatal.signal)
        original_before_step(progress)

    def fatal_call(*args: Any) -> Any:
        result = original(*args) if fatal.point != "publish" else None
        if last_step >= fatal.step:
            os.kill(os.getpid(), fatal.signal)
        return original(*args) if fatal.point == "publish" else result

    task.before_step = before_step
    if fatal.point != "before":
        setattr(owner, name, fatal_call)


def exchange() -> dict[str, object]:
    """Return the results of every collective operation on values that depend on the rank."""
    rank = distributed.rank()
    features = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = distributed.gather_with_gradient(features)
    gathered.square().sum().backward()

    def fail() -> None:
        raise ValueError(f"failed on rank {rank}")

    try:
        distributed.run_on_main(fail)
    except ValueError as error:
        message = str(error)
    return {
        "objects": distributed.gather_objects(f"rank {rank}"),
        "main": distributed.run_on_main(lambda: rank),
        "error": message,
        "max": distributed.max_over_ranks(10 * rank),
        "mean": distributed.mean_over_ranks(torch.tensor(float(rank))).item(),
        "weight": float(distributed.mean_weight(torch.tensor(1 + 2 * rank))),
        "gathered": distributed.gather(features).tolist(),
        "gradient": features.grad.tolist(),
    }


def stream_memory(folder: Path, steps: int, counter: Literal["allocated", "resident"]) -> tuple[float, float]:
    """Return the MB of this process after a fifth of `steps` batches of 4, and after all of them."""
    if counter == "allocated":
        tracemalloc.start()
    stream = Stream([str(folder)], TrainTransform(4, 0.5, False, 0.5), 0)
    megabytes = []
    for step, _ in enumerate(make_loader(stream, list, 4, 0, steps), 1):
        if step in (steps // 5, steps):
            gc.collect()
            resident = memory_gb("cpu") * 1000
            megabytes.append(tracemalloc.get_traced_memory()[0] / 1e6 if counter == "allocated" else resident)
    return megabytes[0], megabytes[1]
