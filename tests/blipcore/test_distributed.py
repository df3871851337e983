"""Alone every call is a no-op; in a group they tell who is who, and each rank takes its slice of the data."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.testing._internal.distributed.fake_pg import FakeStore

from blipcore import distributed
from blipcore.data.loader import make_loader
from blipcore.data.stream import Stream
from blipcore.data.transforms import eval_transform


@contextmanager
def group(rank: int, size: int) -> Iterator[None]:
    """A group whose other members are imagined."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_alone():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)


def test_in_a_group():
    for rank in range(3):
        with group(rank, 3):
            assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (rank, 3, rank == 0)


@pytest.mark.parametrize(
    "device, words", [("cuda", "process 2 of this machine has no GPU, there are 2"), ("cuda:0", "give --device cuda")]
)
def test_more_processes_than_gpus_are_refused(monkeypatch, device, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words), distributed.session(device):
        pass


def test_the_slices_of_the_ranks_make_the_global_batch(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for row in range(24):
            for extension, data in (("png", buffer.getvalue()), ("txt", b"text")):
                member = tarfile.TarInfo(f"{row:02d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    stream = Stream([str(tmp_path)], eval_transform(4), 0)

    def batches(size: int) -> list[list[str]]:
        return [[sample["key"] for sample in batch] for batch, _ in make_loader(stream, list, size, 0, 3)]

    whole, slices = batches(8), []
    for rank in range(4):
        with group(rank, 4):
            slices.append(batches(2))
    assert [[key for own in step for key in own] for step in zip(*slices, strict=True)] == whole
