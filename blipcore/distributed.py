"""Who am I among the processes, and what they tell each other. Alone, every call is a no-op, so no caller asks.

In: the environment that `torchrun` (or `train/launch.py`) gives each process. Out: a process group for as long as a
run lasts, and the few exchanges that training needs. Small host values travel over gloo, also where the tensors of the
model travel over NCCL: asking whether a signal came does not wait for the device.
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

# Groups of this process, ended ones too. A DDP reducer holds its group, and ends it with Python's lock held when it is
# the last to let go, as in the traceback of a run that leaves on a signal: gloo's thread, which may be waiting for that
# lock to drop a tensor, is then waited for, for ever. Python's own reference lets go without the lock.
_groups: list[dist.ProcessGroup] = []

PATIENCE = timedelta(hours=2)  # how long a process waits for another one: an evaluation on rank 0 takes a while


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """How many processes train together, 1 when alone."""
    return dist.get_world_size() if _in_group() else 1


def is_main() -> bool:
    """True in the one process that writes files and talks to the user."""
    return rank() == 0


@contextlib.contextmanager
def session(device: str) -> Iterator[None]:
    """The process group that the launcher's environment describes; without one, or inside a group, nothing happens.

    On CUDA each process takes the device of its local rank. When several processes fail, the first one speaks: the
    others' errors are the same mistake, or follow from it. They become SystemExit, late enough for the launcher to have
    seen the first and ended them.
    """
    if _in_group() or "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        yield
        return
    if device.startswith("cuda"):
        _take_gpu(device, int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    _groups.append(dist.group.WORLD)
    try:
        yield
    except Exception as error:
        # The store lives in the launcher (or in rank 0, and is gone if that has gone).
        with contextlib.suppress(RuntimeError):
            if dist.distributed_c10d._get_default_store().add("failed", 1) > 1:
                time.sleep(10)
                raise SystemExit(1) from error
        raise
    finally:
        dist.destroy_process_group()


def _take_gpu(device: str, number: int) -> None:
    """Make GPU `number` of this machine the process's own; ValueError where it has no such, or was told another one."""
    if device not in ("cuda", f"cuda:{number}"):
        raise ValueError(f"each process takes a GPU of its own: give --device cuda, not {device}")
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"process {number} of this machine has no GPU, there are {torch.cuda.device_count()}: start as many "
            "processes as there are GPUs"
        )
    torch.cuda.set_device(number)


def on_main(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone; every process returns its result or raises its exception."""
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = work()
        except Exception as error:
            if not _in_group():
                raise
            told[1] = error
    if _in_group():
        dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def everyone(own: T) -> list[T]:
    """The small objects of all processes, in rank order, on every one of them."""
    if not _in_group():
        return [own]
    told: list[Any] = [None] * world_size()
    dist.all_gather_object(told, own)
    return told


def largest(number: int) -> int:
    """The largest of every process's numbers."""
    if not _in_group():
        return number
    told = torch.tensor(number)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def mean(own: Tensor) -> Tensor:
    """The mean of every process's tensor."""
    if not _in_group():
        return own
    total = own.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def share(count: Tensor) -> Tensor | float:
    """What a mean over `count` items must be weighed by for the mean over processes to be that over all items."""
    return count / mean(count.float()) if _in_group() else 1.0


def gather(own: Tensor) -> Tensor:
    """Every process's (B, ...) one after the other, (W*B, ...), without gradient."""
    if not _in_group():
        return own.detach()
    every = own.new_empty(world_size() * own.shape[0], *own.shape[1:])
    dist.all_gather(list(every.chunk(world_size())), own.detach().contiguous())
    return every


def gather_with_gradient(own: Tensor) -> Tensor:
    """`gather` whose gradient flows back to every process's part: the sum of what all of them made of it."""
    return _Gather.apply(own) if _in_group() else own


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        return gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]
