"""Shard sets of tiny pictures, and streams over them."""

import io
from pathlib import Path
from typing import Any

from PIL import Image
from tar_files import write_tar

from blipcore.data.stream import Stream
from blipcore.data.transforms import EvalTransform


def encode_png(red: int = 255) -> bytes:
    """Return a picture of 4 x 4 pixels in a shade of red."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard_set(folder: Path, counts: list[int], prefix: str = "", broken: tuple[str, ...] = ()) -> Path:
    """Write shards of `counts` pictures with keys `<prefix>SSRRR`; those in `broken` cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        members = {}
        for row in range(count):
            key = f"{prefix}{shard:02d}{row:03d}"
            members[f"{key}.png"] = b"broken" if key in broken else encode_png(row)
            members[f"{key}.txt"] = f"text of {key}".encode()
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def eval_stream(*specs: str | Path, seed: int = 0, **options: Any) -> Stream:
    """Return a stream of pictures of 4 x 4 pixels, without augmentation."""
    return Stream([str(spec) for spec in specs], EvalTransform(4), seed, **options)


def sample_keys(stream: Stream, count: int, start: int = 0) -> list[str]:
    return [stream.sample(position)["key"] for position in range(start, start + count)]
