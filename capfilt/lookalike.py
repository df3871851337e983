"""Which pictures look like one of a given set: the same photograph at another size or quality, not the same motif.

A difference hash (the idea is N. Krawetz's, "Kind of like that", 2013): a picture shrunk to 9 x 8 and 8 x 9 grey
values, a bit for each pair of neighbours. Here a bit is set where the second is clearly brighter, so that flat areas,
where the order of neighbours is noise, give the same bits each time.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

CLEARLY = 4  # grey levels of 255
NEAR = 8  # of 128 bits


def look(image: Image.Image) -> np.ndarray:
    """(16,) uint8: the 128 bits of a picture."""
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    bits = [np.diff(across, axis=1) > CLEARLY, np.diff(down, axis=0) > CLEARLY]
    return np.packbits(np.concatenate([part.ravel() for part in bits]))


class Looks:
    """The looks of a set of pictures; `image in looks` where one of them differs in at most NEAR bits."""

    def __init__(self, images: Iterable[Image.Image] = ()) -> None:
        self.bits = np.array([look(image) for image in images], np.uint8).reshape(-1, 16)

    def __len__(self) -> int:
        return len(self.bits)

    def __contains__(self, image: Image.Image) -> bool:
        if not len(self):
            return False
        return bool(np.bitwise_count(self.bits ^ look(image)).sum(1).min() <= NEAR)
