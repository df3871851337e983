"""Who am I among the processes. Alone, every call is a no-op, so no caller asks whether a process group exists."""

import torch.distributed as dist


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


def barrier() -> None:
    """Wait until every process is here; nothing to wait for when alone."""
    if _in_group():
        dist.barrier()
