"""The process group of a run: ranks, and the exchanges that training needs.

On a single process every call is a no-op. Host values use gloo even if tensors use NCCL, so that checking for a signal
does not wait for the GPU.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# References to the groups of this process, never dropped. A DDP reducer that drops the last reference destroys the
# group while it holds Python's global lock, and waits for gloo's thread, which may need the lock to free a tensor:
# a deadlock that happened when the traceback of a signal held the reducer.
_groups: list[dist.ProcessGroup | None] = []

# Long, because the other ranks wait while rank 0 evaluates.
GROUP_TIMEOUT = timedelta(hours=2)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, 0 on a single process."""
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _in_group() else 1


def is_main() -> bool:
    """Return whether this is rank 0, which writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the process group of the environment (`torchrun`, `train/launch.py`), and leave it at the end.

    Does nothing without such an environment or inside a group. On CUDA each process uses the GPU of its local rank. If
    several processes fail, only the first error reaches the launcher, because the others follow from it or repeat it:
    they raise SystemExit, late enough for the launcher to have ended them.
    """
    if _in_group() or "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        yield
        return
    if device.startswith("cuda"):
        _set_gpu(device, int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=GROUP_TIMEOUT)
    _groups.append(dist.group.WORLD)
    try:
        yield
    except Exception as error:
        # The store is in the launcher or in rank 0, and may be gone.
        with contextlib.suppress(RuntimeError):
            if dist.distributed_c10d._get_default_store().add("failed", 1) > 1:
                time.sleep(10)
                raise SystemExit(1) from error
        raise
    finally:
        dist.destroy_process_group()


def _set_gpu(device: str, number: int) -> None:
    """Use GPU `number` of this machine. Raises ValueError if it is missing or `device` names another."""
    if device not in ("cuda", f"cuda:{number}"):
        raise ValueError(f"Each process uses its own GPU: give --device cuda, not {device}.")
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"Process {number} of this machine has no GPU, there are {torch.cuda.device_count()}: start as many "
            "processes as there are GPUs."
        )
    torch.cuda.set_device(number)


def run_on_main(work: Callable[[], T]) -> T:
    """Run `work` on rank 0; return its picklable result, or raise its exception, on every rank."""
    if not _in_group():
        return work()
    outcome: list[Any] = [None, None]  # result, exception
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gather_objects(value: T) -> list[T]:
    """Return the picklable values of all ranks, in their order."""
    if not _in_group():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def max_over_ranks(number: int) -> int:
    """Return the largest number of all processes."""
    if not _in_group():
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of the tensors of all processes, without gradient."""
    if not _in_group():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_weight(count: Tensor) -> Tensor | float:
    """Return the weight of a mean over `count` items of this process.

    The mean over processes of the weighted means is the mean over all items.
    """
    return count / mean_over_ranks(count.float()) if _in_group() else 1.0


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the tensors (B, ...) of all W ranks into (W*B, ...), in their order, without gradient."""
    if not _in_group():
        return tensor.detach()
    gathered = tensor.new_empty(world_size() * tensor.shape[0], *tensor.shape[1:])
    dist.all_gather(list(gathered.chunk(world_size())), tensor.detach().contiguous())
    return gathered


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate as `gather`; each process's part gets the sum of its gradients on all processes."""
    return _Gather.apply(tensor) if _in_group() else tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]
