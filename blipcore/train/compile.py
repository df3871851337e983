"""What is done to the layers of a task before it trains: compiled, or their activations computed twice instead of kept.

Neither renames a parameter nor changes a result beyond rounding. Every layer is compiled by itself: layers of a kind
share one program, so that it takes a minute and not ten, and each can still be sharded by itself.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from blipcore.model.attention import CrossAttention, SelfAttention, TwinCrossAttention
from blipcore.model.text import FeedForward, TextTransformer
from blipcore.model.vit import Block, VisionTransformer
from blipcore.train.optim import TrainConfig

# The text transformer has post-LN sub-layers that begin and end with a whole tensor, and its roles combine them in
# other ways: compiled one by one there are fewer programs, and nothing less to fuse.
TEXT_LAYERS = (SelfAttention, CrossAttention, TwinCrossAttention, FeedForward)


def prepare_layers(task: nn.Module, config: TrainConfig, device: str) -> None:
    """Apply `config.recompute` to the model of `task`, and `config.compile` also to its momentum copy."""
    for module in task.model.modules():
        if isinstance(module, VisionTransformer | TextTransformer):
            module.recompute = config.recompute
    compiles = config.compile if config.compile is not None else torch.device(device).type == "cuda"
    if compiles:
        # Of DDP inside torch.compile, which would cut layers where its buckets of gradients end: they are small enough.
        torch._dynamo.config.optimize_ddp = False
    for module in task.modules() if compiles else ():
        if isinstance(module, Block):
            module.compile()
        elif isinstance(module, TEXT_LAYERS):
            module.compile(dynamic=True)  # texts of another length must not make another program


def uncompiled(task: nn.Module) -> AbstractContextManager:
    """Around an evaluation: layers run as they are written, for each of its many shapes would be compiled anew."""
    compiled = any(module._compiled_call_impl is not None for module in task.modules())
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
