"""Training hyperparameters, the optimizer they configure, and the learning-rate schedule.

As in the official code, AdamW decays every parameter, biases and norms included.
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
from blipcore.io.config_diff import CHANGEABLE, INCIDENTAL, PER_PROCESS

Parallel = Literal["ddp", "fsdp"]

AT_LEAST_ONE = ("batch_size", "accumulate", "log_every", "save_every", "keep")
NOT_NEGATIVE = (
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
)


@dataclass
class TrainConfig:
    """Hyperparameters of a run; exactly one of `steps` and `epochs` is above 0. The defaults suit pre-training."""

    steps: int = field(default=0, metadata=CHANGEABLE)  # optimizer steps
    epochs: float = field(default=0.0, metadata=CHANGEABLE)  # passes over the pictures of all data sets together
    batch_size: int = field(default=32, metadata=PER_PROCESS)  # pictures per process and micro-batch
    lr: float = field(default=3e-4, metadata=CHANGEABLE)
    min_lr: float = field(default=0.0, metadata=CHANGEABLE)
    warmup_steps: int = field(default=0, metadata=CHANGEABLE)
    warmup_lr: float = field(default=1e-6, metadata=CHANGEABLE)
    # cosine falls with every step; cosine_by_epoch, the official one for finetuning, after each epoch
    schedule: Literal["cosine", "cosine_by_epoch", "exponential", "constant"] = field(
        default="cosine", metadata=CHANGEABLE
    )
    decay: float = field(default=0.9, metadata=CHANGEABLE)  # factor of the exponential schedule
    # steps between two decays (exponential) or stairs (cosine_by_epoch); 0 = one epoch, as official
    decay_steps: int = field(default=0, metadata=CHANGEABLE)
    weight_decay: float = field(default=0.05, metadata=CHANGEABLE)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = field(default=0.0, metadata=CHANGEABLE)  # largest gradient norm; 0 = no clipping, as official
    accumulate: int = field(default=1, metadata=PER_PROCESS)  # micro-batches per optimizer step
    # bf16 autocast if the hardware multiplies in bf16, else fp32
    dtype: Dtype = field(default="auto", metadata=CHANGEABLE)
    # torch.compile of the layers, which takes a minute; None = on a GPU only
    compile: bool | None = field(default=None, metadata=CHANGEABLE)
    # last layers per transformer whose activations are recomputed in the backward pass, to save memory
    recompute: int = field(default=0, metadata=INCIDENTAL)
    device: str = field(default="auto", metadata=CHANGEABLE)
    # on several processes: the task replicated (DDP) or sharded layer by layer (FSDP2)
    parallel: Parallel = field(default="ddp", metadata=INCIDENTAL)
    # data workers; 0 = load in the training process
    workers: int = field(default=0, metadata=INCIDENTAL)
    seed: int = 42
    log_every: int = field(default=20, metadata=INCIDENTAL)
    save_every: int = field(default=500, metadata=INCIDENTAL)
    keep: int = field(default=2, metadata=INCIDENTAL)  # checkpoints kept
    # on a loss that is not finite; with skip, the host waits for the device in every step
    nonfinite: Literal["stop", "skip"] = field(default="stop", metadata=CHANGEABLE)
    # patterns of parameter names, such as visual_encoder.blocks.[0-5].*
    freeze: list[str] = field(default_factory=list)
    wandb: str = field(default="", metadata=INCIDENTAL)  # project of Weights & Biases to log to

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}.")

    def total_steps(self, pictures: int, ranks: int = 1) -> int:
        """Return the optimizer steps of the run on `pictures` per epoch.

        Raises ValueError unless exactly one of `steps` and `epochs` is given.
        """
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"Set either steps or epochs above 0, not steps={self.steps} and epochs={self.epochs}.")
        return self.steps or max(1, round(self.epochs * self.steps_per_epoch(pictures, ranks)))

    def steps_per_epoch(self, pictures: int, ranks: int = 1) -> float:
        """Return the optimizer steps in which `ranks` processes consume `pictures` once."""
        return pictures / (self.batch_size * self.accumulate * ranks)


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Turn off gradients of the parameters whose names match one of the `patterns` (`*`, `?`, `[0-9]`).

    Raises ValueError for a pattern without a match.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        names = [name for name in parameters if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(
                f"No parameter to freeze matches {pattern!r}; the model has, for example, {min(parameters)}."
            )
        for name in names:
            parameters[name].requires_grad_(False)


def make_adamw(task: nn.Module, config: TrainConfig) -> AdamW:
    """Return AdamW over the trainable parameters of `task`, fused if the device has the kernel.

    Its state is created here instead of in the first step, so that a checkpoint can be loaded into it.
    """
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("The task has no parameter to train: everything is frozen.")
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    # Sharded and unsharded tensors do not mix in one kernel.
    unsharded = [p for p in parameters if not isinstance(p, DTensor)]
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    groups = [{"params": group} for group in (unsharded, sharded) if group]
    optimizer = AdamW(groups, config.lr, config.betas, config.eps, config.weight_decay, fused=fused)
    for p in parameters:
        step = torch.zeros((), device=p.device if fused else None)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def optimizer_tensors(task: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """Return the optimizer's own tensors by parameter name, to be saved or loaded into."""
    return {
        f"{name}.{key}": value
        for name, parameter in task.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step, counted from 0; `steps` and `decay_steps` of `config` must be resolved.

    After a linear warm-up it follows a cosine to `min_lr` (by epoch: in stairs of `decay_steps`), falls by the factor
    `decay` every `decay_steps` down to `min_lr`, or is constant. As in the official pre-training, the exponential
    schedule starts at step 0, and the warm-up only limits it.
    """
    if config.schedule == "exponential":
        lr = max(config.min_lr, config.lr * config.decay ** (step // max(config.decay_steps, 1)))
    elif config.schedule == "constant":
        lr = config.lr
    elif config.schedule in ("cosine", "cosine_by_epoch"):
        cosine_steps = max(config.steps - config.warmup_steps, 1)
        cosine_step = max(step - config.warmup_steps, 0)
        if config.schedule == "cosine_by_epoch":
            cosine_step -= cosine_step % max(config.decay_steps, 1)
        progress = min(cosine_step / cosine_steps, 1.0)
        lr = config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"No schedule is called {config.schedule!r}.")
    if step < config.warmup_steps:
        lr = min(lr, config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps)
    return lr
