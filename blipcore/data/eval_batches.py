"""Batches of annotated pictures, or pairs of pictures, for evaluation; decoded one batch ahead of the model."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blipcore.data.eval_pictures import StoredImage
from blipcore.data.transforms import Transform, load_image

Record = Mapping[str, Any]  # a row of `annotations`, `vqa_nlvr` or `classes`


@dataclass
class EvalBatches:
    """Iterates over batches (records, pixels (B, 3, S, S)), any number of times.

    A record has an "image", or for NLVR2 a pair of "images" with pixels (B, 2, 3, S, S). Raises ValueError for an
    unreadable picture: without it, scores could not be compared.
    """

    records: Sequence[Record]
    transform: Transform
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Sequence[Record], Tensor]]:
        starts = range(0, len(self.records), self.batch_size)
        with ThreadPoolExecutor(1) as executor:
            next_pixels = executor.submit(self._load, 0)
            for start in starts:
                pixels = next_pixels.result()
                next_pixels = executor.submit(self._load, start + self.batch_size)
                yield self.records[start : start + self.batch_size], pixels

    def _load(self, start: int) -> Tensor:
        records = self.records[start : start + self.batch_size]
        if not records:  # beyond the last batch
            return torch.empty(0)
        return torch.stack([self._pixels(record) for record in records])

    def _pixels(self, record: Record) -> Tensor:
        if "images" in record:
            return torch.stack([self._read_picture(path) for path in record["images"]])
        return self._read_picture(record["image"])

    def _read_picture(self, image: Path | StoredImage) -> Tensor:
        try:
            return self.transform(load_image(image.read_bytes()), None)
        except OSError as error:
            raise ValueError(f"The picture {image} cannot be read: {error}.") from error
