"""A batch too large for a GPU is split, with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from capfilt.caption.blip import BlipCaptioner
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.errors import EngineError
from capfilt.filter.blip import BlipScorer
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.pictures.batching import BatchSplitter, resolve_batch_size
from capfilt.shards.tables import read_table


class Gpu:
    """Doubles at most `room` numbers per call; records the sizes of its calls."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def __call__(self, numbers: list[int]) -> list[int]:
        self.sizes.append(len(numbers))
        if len(numbers) > 2 * self.room:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        if len(numbers) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * number for number in numbers]


def test_parts_are_halved_until_they_fit_and_the_size_is_kept() -> None:
    gpu, splitter, numbers = Gpu(3), BatchSplitter(), list(range(11))
    for _ in range(2):
        parts = splitter.run(gpu, numbers)
        assert [double for part in parts for double in part] == [2 * number for number in numbers]
    assert gpu.sizes == [11, 5, *[2] * 5, 1, *[2] * 5, 1]


def test_no_room_for_one_picture_ends_the_run() -> None:
    gpu = Gpu(0)
    with pytest.raises(EngineError, match="no room for the model and one picture"):
        BatchSplitter().run(gpu, [1, 2, 3])
    assert gpu.sizes == [3, 1]


def test_other_errors_are_raised() -> None:
    def broken(numbers: list[int]) -> list[int]:
        raise RuntimeError("device-side assert")

    def broken_server(numbers: list[int]) -> list[int]:
        raise EngineError("The server answers 500 (CUDA out of memory).")

    with pytest.raises(EngineError, match="The server answers 500"):
        BatchSplitter().run(broken_server, [1, 2, 3])
    with pytest.raises(RuntimeError, match="device-side assert"):
        BatchSplitter().run(broken, [1, 2, 3])


def test_a_requested_batch_size_is_kept() -> None:
    sizes = [resolve_batch_size(None, "cpu"), resolve_batch_size(None, "cuda:1"), resolve_batch_size(7, "cuda:1")]
    assert sizes == [32, 256, 7]


def test_a_small_gpu_writes_the_tables_of_a_large_one(shards, tiny_captioner, tiny_blip, monkeypatch) -> None:
    data = shards(1, 10)

    def tables(name: str) -> list[dict]:
        shared = {"data": str(data), "device": "cpu", "dtype": "fp32"}
        caption_shards(CaptionConfig(model=str(tiny_captioner), name=name, **shared), progress=False)
        config = FilterConfig(model=str(tiny_blip), sources=["web"], scores=f"scores-{name}", name=name, **shared)
        filter_shards(config, progress=False)
        return [
            read_table(data / folder / "00000.parquet").to_pydict()
            for folder in (f"captions/{name}", f"scores/scores-{name}")
        ]

    def limited(method: Any) -> Any:
        def call(self: Any, inputs: list[Any], *rest: Any) -> Any:
            if len(inputs) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return method(self, inputs, *rest)

        return call

    captions, scores = tables("large")
    monkeypatch.setattr(BlipCaptioner, "caption", limited(BlipCaptioner.caption))
    monkeypatch.setattr(BlipScorer, "score", limited(BlipScorer.score))
    split_captions, split_scores = tables("small")
    assert (split_captions["key"], split_captions["text"]) == (captions["key"], captions["text"])
    assert len(scores["itm"]) == 10 and split_scores["itm"] == pytest.approx(scores["itm"], abs=1e-5)
