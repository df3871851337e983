"""ITC vectors in tables of scores: of each picture, and of each text with words.

A cell has the unit vector as 16-bit floats, little-endian: `numpy.frombuffer(cell, "<f2")` gives its numbers, 256 for
BLIP. The vector of a picture is in its first row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from torch import Tensor

DTYPE = "<f2"
PICTURE_VECTOR = pa.field("picture_vector", pa.binary())
TEXT_VECTOR = pa.field("text_vector", pa.binary())
VECTORS = (PICTURE_VECTOR, TEXT_VECTOR)


def to_cells(vectors: Tensor) -> list[bytes]:
    """Return the cell of each of N vectors (N, E)."""
    return [row.tobytes() for row in vectors.float().cpu().numpy().astype(DTYPE)]


def vector_columns(image_feat: Tensor, text_feat: Tensor, texts: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
    """Return the cells of B pictures (B, E), and of their texts (R, E) as a list per picture."""
    cells = iter(to_cells(text_feat))
    of_texts = [[next(cells) for _ in picture_texts] for picture_texts in texts]
    return {PICTURE_VECTOR.name: to_cells(image_feat), TEXT_VECTOR.name: of_texts}
