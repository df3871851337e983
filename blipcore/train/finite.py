"""Checks that losses and gradients are finite."""

from __future__ import annotations


class NonFiniteLossError(ValueError):
    """A loss or gradient became infinite or NaN; the message names the pictures of the batch."""
