"""Helpers for tests of `capfilt pack`: inputs, and the pictures of the shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from web import picture

from blipcore.io.samples import TarSample, read_samples
from blipcore.io.tars import TarProblem
from capfilt.ingest.pack import PackConfig, pack
from capfilt.shards.shard_set import ShardSet

TEXTS = [("a.jpg", ["one", "uno"]), ("deep/b c.jpg", ["two"]), ("missing.jpg", ["x"]), ("../outside.jpg", ["y"])]


def pack_folder(source: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Pack `source` in this process and return the summary."""
    return pack(PackConfig(str(source), str(out), **({"workers": 1} | settings)), progress=False)


def pictures_of(out: Path) -> list[TarSample]:
    """Return the samples of a shard set; its tars must have no problems."""
    shard_set = ShardSet.open(out)
    problems: list[TarProblem] = []
    samples = [sample for shard in shard_set.shards for sample in read_samples(shard_set.tar(shard), problems)]
    assert problems == []
    return samples


def write_pictures(root: Path, names: list[str]) -> Path:
    """Write a different picture under each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    return root


def write_annotations(path: Path, kind: str) -> Path:
    """Write `TEXTS` as COCO's JSON ("coco"), as BLIP's JSON ("blip") or as CSV."""
    if kind == "coco":
        content: Any = {
            "images": [{"id": 7 + n, "file_name": name} for n, (name, _) in enumerate(TEXTS)],
            "annotations": [
                {"image_id": 7 + n, "id": 0, "caption": text} for n, (_, texts) in enumerate(TEXTS) for text in texts
            ],
        }
    elif kind == "blip":
        content = [{"image": name, "caption": texts if len(texts) > 1 else texts[0]} for name, texts in TEXTS]
    else:
        lines = [f'"{name}","{text}"\n' for name, texts in TEXTS for text in texts]
        path.write_text("file_name,text\n" + "".join(lines))
        return path
    path.write_text(json.dumps(content))
    return path
