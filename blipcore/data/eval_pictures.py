"""Pictures with captions to evaluate on: of annotations, or of a shard set or filtered set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blipcore.data.annotations import read_captioned_images
from blipcore.data.dataset import DatasetEntry, ShardedDataset
from blipcore.data.shard_datasets import is_annotations, open_dataset
from blipcore.io.storage import to_path

Record = dict[str, Any]


@dataclass(frozen=True)
class StoredImage:
    """A picture in a tar, read like a file."""

    dataset: ShardedDataset
    shard: int
    entry: DatasetEntry

    def read_bytes(self) -> bytes:
        return self.dataset.read(self.shard, self.entry)

    def __str__(self) -> str:
        return f"{self.dataset.name}: {self.dataset.describe(self.shard, self.entry)}"


def read_eval_pictures(path: str, image_root: str | None) -> tuple[list[Record], dict[str, str]]:
    """Return one record per picture (see `CaptionedImage`), and the defects of a shard set, file -> reason.

    Annotations may have no texts, as NoCaps.

    Raises FileNotFoundError, or ValueError for what is no data set.
    """
    location = to_path(path)
    if isinstance(location, Path) and is_annotations(location):
        return [dict(row) for row in read_captioned_images(location, image_root, need_texts=False)], {}
    dataset = open_dataset(path)
    records = [
        {
            "key": dataset.describe(shard, entry),
            "image": StoredImage(dataset, shard, entry),
            "texts": list(entry.texts),
            "image_id": entry.key,
        }
        for shard in range(len(dataset.counts))
        for entry in dataset.load(shard)
    ]
    return records, dataset.problems
