"""Prepares the layers of a task for training: torch.compile, and recomputed activations.

Neither renames a parameter or changes a result beyond rounding. Layers are compiled one by one: those of one kind share
a program, so compiling takes one minute instead of ten, and FSDP2 can still shard each layer.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from blipcore.model.attention import CrossAttention, SelfAttention, TwinCrossAttention
from blipcore.model.text import FeedForward, TextTransformer
from blipcore.model.vit import Block, VisionTransformer
from blipcore.tasks.task import Task
from blipcore.train.optim import TrainConfig

# The roles of the text transformer combine its post-LN sub-layers differently. Compiling sub-layers takes fewer
# programs than compiling layers, and loses no fusion: none crosses a sub-layer's final LayerNorm.
TEXT_LAYERS = (SelfAttention, CrossAttention, TwinCrossAttention, FeedForward)


def prepare_layers(task: Task, config: TrainConfig, device: str) -> None:
    """Apply `config.recompute` to the model of `task`, and `config.compile` to the model and its momentum copy."""
    for module in task.model.modules():
        if isinstance(module, VisionTransformer | TextTransformer):
            module.recompute_activations(config.recompute)
    if config.compile if config.compile is not None else torch.device(device).type == "cuda":
        compile_layers(task)


def compile_layers(task: nn.Module) -> None:
    """Compile each layer of the model and of its momentum copy."""
    # Layers are smaller than DDP's buckets of gradients: splitting them at bucket borders gains nothing.
    torch._dynamo.config.optimize_ddp = False
    for module in task.modules():
        if isinstance(module, Block):
            module.compile()
        elif isinstance(module, TEXT_LAYERS):
            module.compile(dynamic=True)  # one program for all text lengths


def disable_compile(task: nn.Module) -> AbstractContextManager:
    """Return a context in which layers run eagerly: an evaluation would compile each of its many shapes."""
    compiled = any(module._compiled_call_impl is not None for module in task.modules())
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
