"""Exceptions that more than one package raises."""

from __future__ import annotations


class EngineError(RuntimeError):
    """The run cannot go on, and it is not a shard's fault; a stage may say so too."""
