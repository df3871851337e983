"""The numbers of a training run, the optimiser they configure, and the learning rate as a function of the step.

AdamW as the official code has it: one group, weight decay on every parameter, biases and norms included.
"""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from blipcore.device import Dtype
from blipcore.io.config_diff import INCIDENTAL, PER_PROCESS

Parallel = Literal["ddp", "fsdp"]


@dataclass
class TrainConfig:
    """How to train; exactly one of `steps` and `epochs` is above 0. The defaults suit pre-training."""

    steps: int = 0  # optimiser steps
    epochs: float = 0.0  # or passes over the pictures of all data sets together
    batch_size: int = field(default=32, metadata=PER_PROCESS)  # pictures per process and micro-batch
    lr: float = 3e-4
    min_lr: float = 0.0
    warmup_steps: int = 0
    warmup_lr: float = 1e-6
    # The cosine falls at every step; the official finetuning's is cosine_by_epoch, which falls after each epoch.
    learning_rate: Literal["cosine", "cosine_by_epoch", "exponential", "constant"] = "cosine"
    decay: float = 0.9  # exponential: the factor ...
    decay_steps: int = 0  # ... applied every so many steps (and cosine_by_epoch's epoch); 0 = an epoch, as official
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 0.0  # largest norm of the gradient; 0 = no clipping, as official
    accumulate: int = field(default=1, metadata=PER_PROCESS)  # micro-batches per optimiser step
    dtype: Dtype = "auto"  # bf16 autocast where the hardware multiplies in bf16, else fp32
    compile: bool | None = None  # torch.compile of the layers; None = on a GPU, where it takes a minute and pays
    # last layers of each transformer whose activations are computed twice instead of kept in memory
    recompute: int = field(default=0, metadata=INCIDENTAL)
    device: str = "auto"
    # over several processes: the whole task on each, or sharded layer by layer (FSDP2)
    parallel: Parallel = field(default="ddp", metadata=INCIDENTAL)
    # processes that decode pictures; 0 = this one
    workers: int = field(default=0, metadata=INCIDENTAL)
    seed: int = 42
    log_every: int = field(default=20, metadata=INCIDENTAL)
    save_every: int = field(default=500, metadata=INCIDENTAL)
    keep: int = field(default=2, metadata=INCIDENTAL)  # checkpoints kept
    nonfinite: Literal["stop", "skip"] = "stop"  # what to do when a loss is not finite; skip waits for every step
    freeze: list[str] = field(default_factory=list)  # parameters that stay: patterns as visual_encoder.blocks.[0-5].*
    # project of Weights & Biases that the run is also logged to
    wandb: str = field(default="", metadata=INCIDENTAL)

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "steps",
            "epochs",
            "warmup_steps",
            "decay_steps",
            "clip",
            "recompute",
            "workers",
            "seed",
            "lr",
            "min_lr",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")

    def total_steps(self, pictures: int, ranks: int = 1) -> int:
        """Optimiser steps of the run, for an epoch of `pictures`; ValueError unless one of steps, epochs is given."""
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"give either steps or epochs above 0 (steps={self.steps}, epochs={self.epochs})")
        return self.steps or max(1, round(self.epochs * self.steps_per_epoch(pictures, ranks)))

    def steps_per_epoch(self, pictures: int, ranks: int = 1) -> float:
        """Optimiser steps in which `pictures` are seen once."""
        return pictures / (self.batch_size * self.accumulate * ranks)


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Keep the parameters whose names match any of the `patterns` (`*`, `?`, `[0-9]`) as they are."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"nothing to freeze is called {pattern!r}; the model has, for example, {min(names)}")
        for name in matching:
            names[name].requires_grad_(False)


def make_adamw(task: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW over the trainable parameters of `task`, all alike; fused where the device has the kernel.

    Its state is there before the first step, for a checkpoint to be read into.
    """
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the task has no parameter to train: everything is frozen")
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    # Sharded and whole tensors cannot go through one kernel.
    kinds = [[p for p in parameters if isinstance(p, DTensor) is sharded] for sharded in (False, True)]
    groups = [{"params": kind} for kind in kinds if kind]
    optimizer = AdamW(groups, config.lr, config.betas, config.eps, config.weight_decay, fused=fused)
    for p in parameters:
        step = torch.zeros((), device=p.device if fused else None)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def optimizer_tensors(task: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """The state of the optimiser by parameter name: the tensors themselves, to be written or read into."""
    return {
        f"{name}.{key}": value
        for name, parameter in task.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step` (from 0), for a config whose `steps` and `decay_steps` are resolved.

    Linear warm-up, then a cosine to `min_lr` over the steps that remain (by epoch: in stairs of `decay_steps`), or
    steps of `decay` down to `min_lr`, or constant. The exponential one counts from step 0 and the warm-up only limits
    it, as in the official pre-training.
    """
    if config.schedule == "exponential":
        lr = max(config.min_lr, config.lr * config.decay ** (step // max(config.decay_steps, 1)))
    elif config.schedule == "constant":
        lr = config.lr
    elif config.schedule in ("cosine", "cosine_by_epoch"):
        remaining = max(config.steps - config.warmup_steps, 1)
        done = max(step - config.warmup_steps, 0)
        if config.schedule == "cosine_by_epoch":
            done -= done % max(config.decay_steps, 1)
        progress = min(done / remaining, 1.0)
        lr = config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"no schedule is called {config.schedule!r}")
    if step < config.warmup_steps:
        lr = min(lr, config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps)
    return lr
