"""BLIP and its trainer: model, tasks, data stream, training loop."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `load` at its first use, which takes seconds."""
    if name == "load":
        from blipcore.api import load

        return load
    raise AttributeError(f"module 'blipcore' has no attribute {name!r}")
