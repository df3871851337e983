"""What the tests have several processes do; a file of its own because the processes import it by name."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from blipcore import distributed
from blipcore.model.blip import PRESETS, Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Progress, Task
from blipcore.train.optim import TrainConfig, adamw
from blipcore.train.parallel import accumulating, average_whole_gradients, clip_gradients, parallelize, whole_model

WORDS = ["a", "red", "blue", "green", "dog", "cat", "and"]
TEXTS = ["a red dog", "a blue cat and a dog", "a green dog", "red", "blue", "a cat", "a green cat and a red dog", "dog"]
IMAGE_IDS = [0, 1, 2, 3, 0, 4, 5, 1]  # two pictures have a text on each of two processes


def tiny_task(name: str, **options: Any) -> Task:
    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    vision = replace(config.vision, image_size=16, width=32, depth=2, heads=2)
    text = replace(config.text, vocab_size=len(tokenizer), width=32, heads=2, hidden=64, encoder_width=32)
    model = Blip(replace(config, vision=vision, text=text, embed_dim=16))
    if name == "caption":
        return CaptioningTask(model.only("decode"), tokenizer, CaptioningConfig(prompt="a ", **options))
    if name == "retrieval":
        return RetrievalTask(model.only("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=12, **options))
    return PretrainTask(model, tokenizer, PretrainConfig(queue_size=12, **options))


def samples() -> list[dict[str, Any]]:
    noise = torch.Generator().manual_seed(1)
    return [
        {"key": str(row), "image": torch.randn(3, 16, 16, generator=noise), "text": text, "image_id": IMAGE_IDS[row]}
        for row, text in enumerate(TEXTS)
    ]


def train_in_turn(scenarios: list[tuple]) -> list[dict[str, Any]]:
    """`train_two_steps` for each (name, how, micro, options)."""
    return [train_two_steps(name, how, micro, **options) for name, how, micro, options in scenarios]


def train_two_steps(name: str, how: str, micro: int, clip: float = 0.0, **options: Any) -> dict[str, Any]:
    """Losses, first gradients and final state of two steps on all samples, in batches of `micro` on each process."""
    task = tiny_task(name, **options)
    module = parallelize(task.train(), how)
    optimizer = adamw(task, TrainConfig(lr=1e-3))
    rank, ranks = distributed.rank(), distributed.world_size()
    starts = range(rank * micro, len(TEXTS), ranks * micro)
    batches = [task.collate(samples()[start : start + micro]) for start in starts]
    told: dict[str, Any] = {"losses": []}
    for step in range(2):
        task.before_step(Progress(step, 2))
        outputs = []
        for number, batch in enumerate(batches):
            with accumulating(module, last=number == len(batches) - 1):
                out = module(batch, Progress(step, 2))
                (out["loss"] / len(batches)).backward()
            outputs.append({key: value.detach() for key, value in out.items()})
        average_whole_gradients(task)
        if clip:
            told["norm"] = clip_gradients(task, clip)
        names = [key for key in outputs[0] if key.startswith("loss")]
        own = torch.stack([torch.stack([out[key] for out in outputs]).mean() for key in names])
        told["losses"].append(dict(zip(names, distributed.mean(own).tolist(), strict=True)))
        gradients = {key: whole(p.grad) for key, p in task.named_parameters() if p.requires_grad}
        told.setdefault("gradients", gradients)
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(outputs)
    told["state"] = {key: whole(value) for key, value in task.state_dict().items()}
    exported = whole_model(task).state_dict()
    if distributed.is_main():
        told["exported"] = {key: value.clone() for key, value in exported.items()}
    return told


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
