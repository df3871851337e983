"""How many pictures go through a model at a time: what was asked for, else what its device's memory holds.

In: a batch of any size. Out: the same results, in parts that fit. A GPU that runs out of memory says so and goes on, so
the size is found by trying; on a CPU the system would end the process instead, and small batches are as fast.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from capfilt.errors import EngineError

T = TypeVar("T")
SHORT = ("out of memory", "ALLOC_FAILED")  # as torch and CUDA say it; cuBLAS and cuDNN, of their workspaces


def batch_size(asked: int | None, device: str) -> int:
    """Pictures to read for a forward pass; without being told, on a GPU a first try that may be too many."""
    return asked or (256 if device.startswith("cuda") else 32)


class Fit:
    """Calls a model on a batch, in parts half as large each time that its GPU is full; what fits is kept in mind."""

    def __init__(self) -> None:
        self.largest: int | None = None  # None: no part was ever too large

    def __call__(self, run: Callable[..., T], *batch: Sequence[Any]) -> list[T]:
        """What `run` says of each part of a batch, whose lists are as long as each other.

        EngineError where there is no room for a single one.
        """
        said: list[T] = []
        start, count = 0, len(batch[0])
        while start < count:
            end = min(count, start + (self.largest or count))
            of_part = _try(run, [column[start:end] for column in batch])
            if of_part is not None:
                said.append(of_part)
                start = end
            elif end - start > 1:
                self.largest = (end - start) // 2
            else:
                raise EngineError(
                    "The GPU has no room for the model and one picture: use --dtype bf16 or a larger GPU."
                )
        return said


def _try(run: Callable[..., T], part: Sequence[Any]) -> T | None:
    """What `run` says of a part, or None where memory was short; then all that it held is free."""
    try:
        return run(*part)
    except RuntimeError as error:
        if not any(words in str(error) for words in SHORT):
            raise
    import torch

    # not in the except clause, whose error keeps the model's tensors alive
    gc.collect()
    torch.cuda.empty_cache()
    return None
