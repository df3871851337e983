"""Batch sizes: the requested number of pictures, or as many as the memory of a GPU holds.

A full GPU raises an error, so the largest size is found by trial. On a CPU the system would kill the process instead,
and small batches are as fast.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from capfilt.errors import EngineError

T = TypeVar("T")
# In messages of torch and CUDA; in those of cuBLAS and cuDNN about their workspaces.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")


def resolve_batch_size(requested: int | None, device: str) -> int:
    """Return the pictures per forward pass; `BatchSplitter` splits a default that a GPU cannot hold."""
    return requested or (256 if device.startswith("cuda") else 32)


class BatchSplitter:
    """Calls a model on a batch, split into smaller parts if the GPU has too little memory."""

    def __init__(self) -> None:
        # rows per part; None until a batch was too large
        self.largest: int | None = None

    def run(self, function: Callable[..., T], *columns: Sequence[Any]) -> list[T]:
        """Return the results of `function` for each part of the columns, which have equal lengths.

        Raises EngineError if not even one row fits.
        """
        results: list[T] = []
        start, count = 0, len(columns[0])
        while start < count:
            end = min(count, start + (self.largest or count))
            result = _try(function, [column[start:end] for column in columns])
            if result is not None:
                results.append(result)
                start = end
            elif end - start > 1:
                self.largest = (end - start) // 2
            else:
                raise EngineError(
                    "The GPU has no room for the model and one picture; use --dtype bf16 or a GPU with more memory."
                )
        return results


def _try(function: Callable[..., T], part: Sequence[Any]) -> T | None:
    """Return the result for a part; if the GPU is full, free the memory of the call and return None."""
    try:
        return function(*part)
    except EngineError:  # a server's message about its own memory is no reason to split
        raise
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
    import torch

    # Outside the except clause: its error keeps the model's tensors alive.
    gc.collect()
    torch.cuda.empty_cache()
    return None
