"""Pictures that hash like photographs, and their bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the bytes of a picture in a format of PIL."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(number: int) -> Image.Image:
    """Return a picture of soft blobs, which hashes like a photograph."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
