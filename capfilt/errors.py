"""Exceptions that several packages raise."""

from __future__ import annotations


class EngineError(RuntimeError):
    """The run cannot continue, for a reason that concerns every shard. Stages may raise it too."""
