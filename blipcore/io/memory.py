"""The memory of this process and its children, and its limit."""

from __future__ import annotations

import sys

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


class NotEnoughMemoryError(MemoryError):
    """Work needs more memory than this process may have."""
