"""The `Captioner` protocol: pictures in, captions with their log-probabilities out.

A new captioner is a file with one class of this protocol, and a branch in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image


class Caption(NamedTuple):
    """A caption, or the reason why there is none."""

    text: str | None
    # log-probability of the text; None if the model does not return it
    logprob: float | None
    # `reason` or `reason: details`; None if there is a text
    error: str | None = None


class Captioner(Protocol):
    """Captions pictures. The captions of a picture must not depend on the other pictures of the call."""

    name: str
    # changes whenever the captions would change
    fingerprint: str

    def prepare(self, image: Image.Image) -> Any:
        """Return the input of `caption` for an RGB image. Decoding threads call it, ahead of the model."""

    def caption(self, inputs: Sequence[Any], keys: Sequence[str]) -> Sequence[Sequence[Caption]]:
        """Return the captions of each prepared picture; randomness comes from the pictures' `keys`."""
