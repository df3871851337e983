"""The stream takes the same memory for ten shards and for thousands, after few steps and after many."""

import io
import tarfile
from pathlib import Path

import pytest
from on_ranks import on_ranks
from PIL import Image
from rank_work import stream_memory


def write_shard(path: Path, pictures: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for row in range(pictures):
            for extension, data in (("png", buffer.getvalue()), ("txt", b"a text")):
                member = tarfile.TarInfo(f"{row:02d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def assert_flat(tmp_path: Path, shards: int, steps: int) -> None:
    write_shard(tmp_path / "one.tar", pictures=8)
    taken = {}
    for count in (10, shards):
        folder = tmp_path / str(count)
        folder.mkdir()
        for shard in range(count):
            (folder / f"{shard:05d}.tar").hardlink_to(tmp_path / "one.tar")
        (taken[count],) = on_ranks(1, stream_memory, folder, steps)
    print({count: f"{early:.1f} -> {late:.1f} MB" for count, (early, late) in taken.items()})
    assert all(late - early < 4 for early, late in taken.values())
    assert abs(taken[10][1] - taken[shards][1]) < 4


def test_memory_is_flat(tmp_path):
    assert_flat(tmp_path, shards=1000, steps=2000)


@pytest.mark.slow
def test_memory_is_flat_for_long(tmp_path):
    assert_flat(tmp_path, shards=10_000, steps=10_000)
