"""The content of the labelling view: texts, pictures, and the command that reads the labels."""

from __future__ import annotations

import shlex
from collections import defaultdict
from typing import Any

from capfilt.filter.filtered_set import FilteredSet
from capfilt.pictures.decode import MAX_PIXELS
from capfilt.report.filter_command import filter_command
from capfilt.report.label_texts import DrawnText
from capfilt.report.thumbnails import read_thumbnails
from capfilt.shards.shard_set import ShardSet

# Characters shown per text; captions of VLMs have up to about 1,500.
MAX_CHARACTERS = 4000
# Per picture in the page.
PICTURE_BYTES = 12_000


def describe_labelling(
    data: FilteredSet, texts: list[DrawnText], seed: int, file: str = "labels.csv"
) -> dict[str, Any]:
    """Return the content of the labelling view without pictures: the texts, and the command that reads `file`."""
    learn = ["--name", f"{data.folder.name}-auto", "--threshold", "auto", "--labels", file]
    return {
        "set": data.folder.name,
        "seed": seed,
        "file": file,
        "command": shlex.join([*filter_command(data), *learn]),
        "texts": [
            {
                "id": text.identifier,
                "shard": text.shard,
                "key": text.key,
                "source": text.source,
                "index": text.index,
                "drawn": text.drawn,
                "text": text.text[:MAX_CHARACTERS],
                "cut": max(0, len(text.text) - MAX_CHARACTERS),
            }
            for text in texts
        ],
    }


def read_pictures(data: FilteredSet, texts: list[DrawnText]) -> dict[str, dict[str, str]]:
    """Return shard/key -> thumbnail, or the reason why there is none."""
    keys: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        keys[text.shard].add(text.key)
    images = ShardSet(data.images, list(keys))
    max_pixels = max(MAX_PIXELS, images.max_pixels() or 0)
    pictures = {}
    for shard, of_shard in sorted(keys.items()):
        thumbnails = read_thumbnails(images.tar(shard), of_shard, PICTURE_BYTES, max_pixels)
        for key in sorted(of_shard):
            pictures[f"{shard}/{key}"] = thumbnails.get(key, {"missing": "not in its tar"})
    return pictures
