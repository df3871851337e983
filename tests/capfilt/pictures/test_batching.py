"""A batch that a GPU has no room for goes through in parts, and says the same."""

import pytest
import torch

from capfilt.caption.blip import BlipCaptioner
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.errors import EngineError
from capfilt.filter.blip import BlipScorer
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.pictures.batching import Fit, batch_size
from capfilt.shards.tables import read_table


class Gpu:
    """Doubles numbers, `room` of them at a time; remembers how many it was given."""

    def __init__(self, room: int) -> None:
        self.room, self.given = room, []

    def __call__(self, numbers: list[int]) -> list[int]:
        self.given.append(len(numbers))
        if len(numbers) > 2 * self.room:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        if len(numbers) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * number for number in numbers]


def test_parts_are_halved_until_they_fit_and_stay_so() -> None:
    gpu, fit, numbers = Gpu(3), Fit(), list(range(11))
    for _ in range(2):
        parts = fit(gpu, numbers)
        assert [two for part in parts for two in part] == [2 * number for number in numbers]
    assert gpu.given == [11, 5, *[2] * 5, 1, *[2] * 5, 1]


def test_no_room_for_a_single_one_ends_the_run() -> None:
    gpu = Gpu(0)
    with pytest.raises(EngineError, match="no room for the model and one picture"):
        Fit()(gpu, [1, 2, 3])
    assert gpu.given == [3, 1]


def test_other_errors_are_not_tried_again() -> None:
    def broken(numbers: list[int]) -> list[int]:
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        Fit()(broken, [1, 2, 3])


def test_a_batch_that_was_asked_for_is_kept() -> None:
    assert [batch_size(None, "cpu"), batch_size(None, "cuda:1"), batch_size(7, "cuda:1")] == [32, 256, 7]


def test_tables_of_a_full_gpu_are_those_of_a_large_one(shards, tiny_captioner, tiny_blip, monkeypatch) -> None:
    data = shards(1, 10)

    def tables(name: str) -> list[dict]:
        shared = {"data": str(data), "device": "cpu", "dtype": "fp32"}
        caption_shards(CaptionConfig(model=str(tiny_captioner), name=name, **shared), progress=False)
        judged = FilterConfig(model=str(tiny_blip), sources=["web"], scores=f"of-{name}", name=name, **shared)
        filter_shards(judged, progress=False)
        return [
            read_table(data / where / "00000.parquet").to_pydict()
            for where in (f"captions/{name}", f"scores/of-{name}")
        ]

    def short_of_memory(method):
        def call(self, inputs, *rest):
            if len(inputs) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return method(self, inputs, *rest)

        return call

    captions, scores = tables("large")
    monkeypatch.setattr(BlipCaptioner, "caption", short_of_memory(BlipCaptioner.caption))
    monkeypatch.setattr(BlipScorer, "score", short_of_memory(BlipScorer.score))
    in_parts, scores_in_parts = tables("full")
    assert (in_parts["key"], in_parts["text"]) == (captions["key"], captions["text"])
    assert len(scores["itm"]) == 10 and scores_in_parts["itm"] == pytest.approx(scores["itm"], abs=1e-5)
