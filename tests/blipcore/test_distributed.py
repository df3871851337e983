"""Ranks, exchanges between processes, and the slices of data that ranks load."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from on_ranks import on_ranks
from picture_shards import eval_stream, write_shard_set
from rank_work import exchange
from torch.testing._internal.distributed.fake_pg import FakeStore

from blipcore import distributed
from blipcore.data.loader import make_loader


@contextmanager
def fake_group(rank: int, size: int) -> Iterator[None]:
    """A process group without other processes."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_single_process_is_rank_0_of_1() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)


def test_in_a_group_rank_0_is_main() -> None:
    for rank in range(3):
        with fake_group(rank, 3):
            assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (rank, 3, rank == 0)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "Process 2 of this machine has no GPU, there are 2"), ("cuda:0", "give --device cuda")],
)
def test_more_processes_than_gpus_are_refused(monkeypatch, device, message) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), distributed.process_group(device):
        pass


def test_the_slices_of_the_ranks_make_the_global_batch(tmp_path) -> None:
    stream = eval_stream(write_shard_set(tmp_path, [24]))

    def batches(size: int) -> list[list[str]]:
        return [[sample["key"] for sample in batch] for batch, _ in make_loader(stream, list, size, 0, 3)]

    global_batches, slices = batches(8), []
    for rank in range(4):
        with fake_group(rank, 4):
            slices.append(batches(2))
    assert [[key for part in step for key in part] for step in zip(*slices, strict=True)] == global_batches


def test_exchanges_between_two_processes() -> None:
    for rank, result in enumerate(on_ranks(2, exchange)):
        assert result == {
            "objects": ["rank 0", "rank 1"],
            "main": 0,
            "error": "failed on rank 0",
            "max": 10,
            "mean": 0.5,
            "weight": (0.5, 1.5)[rank],  # of 1 and 3 items
            "gathered": [[0.0] * 3] * 2 + [[1.0] * 3] * 2,
            "gradient": [[4.0 * rank] * 3] * 2,  # of both processes
        }


def test_exchanges_on_a_single_process_change_nothing() -> None:
    assert exchange() == {
        "objects": ["rank 0"],
        "main": 0,
        "error": "failed on rank 0",
        "max": 0,
        "mean": 0.0,
        "weight": 1.0,
        "gathered": [[0.0] * 3] * 2,
        "gradient": [[0.0] * 3] * 2,
    }
