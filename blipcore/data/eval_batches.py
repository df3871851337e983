"""Annotated pictures, or pairs, as batches for evaluation: decoded and transformed a batch ahead of the model."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blipcore.data.transforms import Transform, load_image

Record = Mapping[str, Any]  # a row of `annotations` or `answers`


@dataclass
class Pictures:
    """Iterates over (records, pixels (B, 3, S, S)) batches, any number of times; raises ValueError on a bad picture.

    A record has one "image", or the two "images" of an NLVR2 pair: the pixels are then (B, 2, 3, S, S).
    An evaluation set is small and curated: unlike in training, a missing picture must stop it, not change its size.
    """

    records: Sequence[Record]
    transform: Transform
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Sequence[Record], Tensor]]:
        starts = range(0, len(self.records), self.batch_size)
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self._load, 0)
            for start in starts:
                pixels = pending.result()
                pending = ahead.submit(self._load, start + self.batch_size)
                yield self.records[start : start + self.batch_size], pixels

    def _load(self, start: int) -> Tensor:
        return torch.stack([self._pixels(r) for r in self.records[start : start + self.batch_size]] or [torch.empty(0)])

    def _pixels(self, record: Record) -> Tensor:
        if "images" in record:
            return torch.stack([self._picture(path) for path in record["images"]])
        return self._picture(record["image"])

    def _picture(self, path: Path) -> Tensor:
        try:
            return self.transform(load_image(path), None)
        except OSError as error:
            raise ValueError(f"evaluation picture {path} cannot be read: {error}") from error
