"""Annotated pictures as batches for evaluation: decoded and transformed a batch ahead of the model."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from blipcore.data.annotations import CaptionedImage
from blipcore.data.transforms import Transform, load_image


@dataclass
class Pictures:
    """Iterates over (records, pixels (B, 3, S, S)) batches, any number of times; raises ValueError on a bad picture.

    An evaluation set is small and curated: unlike in training, a missing picture must stop it, not change its size.
    """

    records: Sequence[CaptionedImage]
    transform: Transform
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Sequence[CaptionedImage], Tensor]]:
        starts = range(0, len(self.records), self.batch_size)
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self._load, 0)
            for start in starts:
                pixels = pending.result()
                pending = ahead.submit(self._load, start + self.batch_size)
                yield self.records[start : start + self.batch_size], pixels

    def _load(self, start: int) -> Tensor:
        return torch.stack(
            [self._picture(r) for r in self.records[start : start + self.batch_size]] or [torch.empty(0)]
        )

    def _picture(self, record: CaptionedImage) -> Tensor:
        try:
            return self.transform(load_image(record["image"]), None)
        except OSError as error:
            raise ValueError(f"evaluation picture {record['image']} cannot be read: {error}") from error
