"""Shards for the toy task of `toy_training`."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="package")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 20 pictures whose text is a number, the brightness of the picture."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(20):
                buffer = io.BytesIO()
                Image.new("RGB", (12, 12), (12 * row, 100 * shard, 0)).save(buffer, "PNG")
                for name, data in (("png", buffer.getvalue()), ("txt", str(row / 20).encode())):
                    member = tarfile.TarInfo(f"{shard}{row:04d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder
