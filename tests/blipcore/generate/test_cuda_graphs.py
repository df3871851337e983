"""Replayed decoding steps give the captions of the plain decoder, for any sequence of batches.

Without a GPU, torch's tracer records a step instead. Like a CUDA graph, it repeats the operations on the same memory
and treats every Python number as a constant.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from random_captioner import TOKENIZER, random_captioner
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from blipcore.generate import cuda_graphs
from blipcore.generate.config import GenerateConfig
from blipcore.generate.cuda_graphs import CudaGraphs, RecordedStep, record_step
from blipcore.generate.generate import generate
from blipcore.generate.sample import GeneratedTexts
from blipcore.inference.prepare import prepare_for_inference
from blipcore.model.blip import Blip


def trace_step(step: Callable[[], Tensor], device: torch.device, sibling: RecordedStep | None) -> RecordedStep:
    """Record a step with torch's tracer."""
    step()
    graph = make_fx(step)()
    logits = graph()

    def replay() -> None:
        logits.copy_(graph())

    return RecordedStep(replay, logits)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Trace from the third step of a size on; yield the recorded rows of every replay."""
    replayed_rows: list[int] = []

    def record(step: Callable[[], Tensor], device: torch.device, sibling: RecordedStep | None) -> RecordedStep:
        recorded = trace_step(step, device, sibling)

        def replay() -> None:
            replayed_rows.append(len(recorded.logits))
            recorded.replay()

        return recorded._replace(replay=replay)

    monkeypatch.setattr(cuda_graphs, "record_step", record)
    monkeypatch.setattr(CudaGraphs, "STEPS_BEFORE_RECORDING", 2)
    with warnings.catch_warnings():
        # Others than UserWarning may come from objects of earlier tests, collected at this moment.
        warnings.simplefilter("error", UserWarning)
        yield replayed_rows


def caption_batches(
    model: Blip, config: GenerateConfig, sizes: list[int], graphs: CudaGraphs | None = None
) -> list[GeneratedTexts]:
    """Return the captions of one batch of random images per size."""
    results, start = [], 0
    for size in sizes:
        embeds = torch.randn(size, 5, 16, generator=torch.Generator().manual_seed(start))
        embeds = embeds.to(model.text.lm_head.bias.device)
        before = embeds.clone()
        keys = [str(start + i) for i in range(size)]
        results.append(generate(model, embeds, TOKENIZER, config, keys, graphs=graphs))
        assert torch.equal(embeds, before)
        start += size
    return results


def ids_of(batches: list[GeneratedTexts]) -> list[list[list[int]]]:
    return [batch.ids for batch in batches]


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({"mode": "nucleus"}, 2),
        ({"mode": "nucleus", "num_captions": 3}, 2),  # with keys and values
        ({"mode": "nucleus", "num_captions": 3, "max_length": 9}, 1),  # with image tokens in their place
        ({"mode": "greedy", "repetition_penalty": 1.3, "prompt": ""}, 2),  # a prompt of one token
        ({"mode": "beam", "max_length": 14}, 2),
    ],
)
def test_captions_equal_those_of_the_plain_decoder(replays: list[int], options: dict[str, Any], heads: int) -> None:
    model, config = random_captioner(heads), GenerateConfig(**{"max_length": 16, "min_length": 1, **options})
    # 12 images are more than the first batch made room for.
    sizes = [9, 9, 5, 12, 12]
    expected = caption_batches(model, config, sizes)
    results = caption_batches(model, config, sizes, CudaGraphs())
    assert ids_of(results) == ids_of(expected)
    for result, plain in zip(results, expected, strict=True):
        assert result.logprob == pytest.approx(plain.logprob, abs=1e-4)
    rows = config.beams if config.mode == "beam" else config.num_captions
    assert len(replays) >= 5 and {count // rows for count in replays} <= {1, 2, 3, 4, 6, 8, 9, 12}
    assert len(set(replays)) > 1, "all replays had one size"


def test_nothing_is_recorded_unless_graphs_are_passed(replays: list[int]) -> None:
    caption_batches(random_captioner(), GenerateConfig(max_length=20, min_length=10), [6, 6])
    assert replays == []


def test_sizes_of_recorded_steps(replays: list[int]) -> None:
    graphs = CudaGraphs()
    graphs.copy_images(random_captioner().text.image_kv(torch.zeros(100, 5, 16)))
    assert [graphs.size(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 17, 25, 64, 65, 96, 97, 100)] == [
        *(1, 2, 3, 4, 6, 6, 8, 12, 12, 16, 24, 32, 64, 96, 96, 100, 100)
    ]


def test_a_step_with_a_wrong_replay_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(step: Callable[[], Tensor], device: torch.device, sibling: RecordedStep | None) -> RecordedStep:
        return RecordedStep(lambda: None, step() * 0.5)

    def broken(step: Callable[[], Tensor], device: torch.device, sibling: RecordedStep | None) -> RecordedStep:
        raise RuntimeError("operation not permitted when stream is capturing")

    model, config = random_captioner(), GenerateConfig(max_length=20, min_length=10)
    expected = caption_batches(model, config, [6, 6])
    monkeypatch.setattr(CudaGraphs, "STEPS_BEFORE_RECORDING", 2)
    for record, reason in ((stale, "logits differ"), (broken, "not permitted")):
        monkeypatch.setattr(cuda_graphs, "record_step", record)
        with pytest.warns(UserWarning, match=f"without CUDA graphs.*{reason}") as warned:
            results = caption_batches(model, config, [6, 6], CudaGraphs())
        assert ids_of(results) == ids_of(expected)
        assert len(warned) == 1


def test_running_out_of_memory_frees_all_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(step: Callable[[], Tensor], device: torch.device, sibling: RecordedStep | None) -> RecordedStep:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CudaGraphs, "STEPS_BEFORE_RECORDING", 2)
    monkeypatch.setattr(cuda_graphs, "record_step", full)
    graphs = CudaGraphs()
    with pytest.raises(torch.OutOfMemoryError):
        caption_batches(random_captioner(), GenerateConfig(max_length=20, min_length=10), [6], graphs)
    assert graphs.kv is None and graphs.cache is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"num_captions": 3}, {"mode": "beam"}])
def test_captions_on_a_gpu_equal_those_without_graphs(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recordings: list[int] = []

    def count(step: Callable[[], Tensor], device: torch.device, sibling: RecordedStep | None) -> RecordedStep:
        recordings.append(1)
        return record_step(step, device, sibling)

    monkeypatch.setattr(cuda_graphs, "record_step", count)
    config = GenerateConfig(max_length=20, min_length=1, **options)
    model = prepare_for_inference(random_captioner(), "cuda", "fp32")
    sizes = [9, 9, 5, 1, 9, 12, 7, 12]
    expected = caption_batches(model, config, sizes)
    results = caption_batches(model, config, sizes, CudaGraphs())
    assert recordings and ids_of(results) == ids_of(expected)
