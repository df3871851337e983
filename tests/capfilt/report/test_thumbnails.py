"""Thumbnails stay within their budget."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from capfilt.report.thumbnails import make_thumbnail


@pytest.mark.parametrize("size", [30_000, 3_000])
def test_thumbnails_are_within_their_budget(size: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 1200, 3), np.uint8))
    assert len(make_thumbnail(noise, size)) <= size
