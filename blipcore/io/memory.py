"""The memory of this process and its children, and its limit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WORKING_BYTES = 400_000_000  # for the buffers, threads and programs of torch
# Error messages at the limit of `ulimit -v`: starting a thread, oneDNN, loading a shared library.
LIMIT_MESSAGES = ("can't start new thread", "could not create a", "failed to map segment", "Cannot allocate memory")
CGROUPS = Path("/sys/fs/cgroup")

# `resource` is imported late: Windows has none, and the commands must start there to say that they cannot run.


def peak_memory_gb() -> dict[str, float]:
    """Return the highest resident memory so far, in GB, of this process and of the largest of its ended children.

    `largest_child` covers the children of children that were waited for; it is 0 without any.
    """
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    processes = {"this_process": resource.RUSAGE_SELF, "largest_child": resource.RUSAGE_CHILDREN}
    return {name: round(resource.getrusage(who).ru_maxrss * unit / 1e9, 3) for name, who in processes.items()}


def describe_memory_limit() -> str:
    """Return " (`ulimit -v` allows X GB)" for an error message, empty without such a limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f" (`ulimit -v` allows {limit / 1e9:.1f} GB)"


def is_allocation_error(error: BaseException | str) -> bool:
    """Return whether an error, or its message, is that of a failed allocation of Python, numpy, torch or the linker."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "bad_alloc" in str(error):
        return True
    return bool(describe_memory_limit()) and any(message in str(error) for message in LIMIT_MESSAGES)


class NotEnoughMemoryError(MemoryError):
    """Work needs more memory than this process may have."""


def require_memory(needed: float, purpose: str) -> None:
    """Raise NotEnoughMemoryError if a limit leaves less than `needed` bytes and WORKING_BYTES to this process.

    Without this check some libraries end the process with a segmentation fault.
    """
    for name, limit, used in _memory_limits():
        left = limit - used
        if left < needed + WORKING_BYTES:
            raise NotEnoughMemoryError(
                f"{purpose} needs at least {(needed + WORKING_BYTES) / 1e9:.1f} GB of memory more, but {name} of "
                f"{limit / 1e9:.1f} GB leaves {max(0, left) / 1e9:.1f} GB: raise the limit, or use a smaller model."
            )


def _memory_limits() -> Iterator[tuple[str, int, int]]:
    """Yield the name, the bytes and the used bytes of each limit; nothing is known without /proc."""
    import resource

    try:
        page = resource.getpagesize()
        virtual, resident = (int(pages) * page for pages in Path("/proc/self/statm").read_text().split()[:2])
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield "the limit of `ulimit -v`", limit, virtual
    machine = sum(int(sizes[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))
    yield "the memory", machine, resident
    for group in groups:
        number, controllers, path = group.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root, file = (CGROUPS, "memory.max") if number == "0" else (CGROUPS / "memory", "memory.limit_in_bytes")
        folder = root / path.lstrip("/")
        for ancestor in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no such limit, or "max"
                limit = int((ancestor / file).read_text())
                if limit < machine:
                    yield "the limit of the control group (container, Slurm job)", limit, resident
            if ancestor == root:
                break
