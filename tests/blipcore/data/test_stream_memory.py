"""Memory of the stream: the same for ten shards and for thousands, after few steps and after many."""

from pathlib import Path
from typing import Literal

import pytest
from on_ranks import on_ranks
from picture_shards import encode_png
from rank_work import stream_memory
from tar_files import write_tar


def measure(tmp_path: Path, shards: int, steps: int, counter: Literal["allocated", "resident"]) -> list[float]:
    """MB after a fifth of the steps and after all, for 10 shards and for `shards`."""
    members = {
        f"{row:02d}.{suffix}": data for row in range(8) for suffix, data in (("png", encode_png()), ("txt", b"a"))
    }
    write_tar(tmp_path / "one.tar", members)
    megabytes = []
    for count in (10, shards):
        folder = tmp_path / str(count)
        folder.mkdir()
        for shard in range(count):
            (folder / f"{shard:05d}.tar").hardlink_to(tmp_path / "one.tar")
        (memory,) = on_ranks(1, stream_memory, folder, steps, counter)
        megabytes += memory
    print(f"{counter}: " + ", ".join(f"{value:.2f} MB" for value in megabytes))
    return megabytes


def test_allocated_memory_does_not_grow(tmp_path) -> None:
    """Counts what Python and numpy allocate, which does not depend on the machine."""
    megabytes = measure(tmp_path, shards=500, steps=400, counter="allocated")
    # The list of shards: 490 paths of up to 2 kB each, with Python 3.14.
    assert max(megabytes) - min(megabytes) < 1


@pytest.mark.slow
def test_resident_memory_does_not_grow(tmp_path) -> None:
    """Counts all pages of the process, so that fragmentation and native libraries count as well."""
    megabytes = measure(tmp_path, shards=10_000, steps=10_000, counter="resident")
    assert max(megabytes) - min(megabytes) < 4
