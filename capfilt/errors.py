"""Exceptions that several packages raise."""

from __future__ import annotations


class EngineError(RuntimeError):
    """An error that concerns every shard and ends the run; stages may raise it too."""
