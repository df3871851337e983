"""Golden outputs of the official BLIP code (see `tests/golden/README.md`), and the comparison with them."""

import os
from pathlib import Path

import torch
from torch.testing import assert_close

# BLIPCORE_GOLDEN names another folder of the same layout, for example with other model sizes.
GOLDEN = Path(os.environ.get("BLIPCORE_GOLDEN") or Path(__file__).resolve().parents[1] / "golden")
TOLERANCE = 2e-5


def assert_matches(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise AssertionError unless integers are equal and floats differ by at most `TOLERANCE` of the tensor's scale.

    The scale is the largest absolute value of `expected`, at least 1: rounding errors grow with the largest terms of a
    sum, so small values are as inexact as large ones.
    """
    if not expected.is_floating_point():
        assert_close(actual, expected, atol=0, rtol=0)
        return
    scale = max(1.0, expected.abs().max().item())
    assert_close(actual.detach(), expected, atol=TOLERANCE * scale, rtol=0)
