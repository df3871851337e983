"""Replayed decoding steps: the same captions as without, whatever batch comes after whatever batch.

Where there is no GPU, a step is recorded by torch's tracer instead: like a CUDA graph it repeats the operations on the
very memory that they had, and takes every Python number for a constant.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from random_captioner import TOKENIZER, random_captioner
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from blipcore.generate import decoder as decoding
from blipcore.generate.config import GenerateConfig
from blipcore.generate.cuda_graphs import Recorded, Steps, record
from blipcore.generate.generate import generate
from blipcore.generate.sample import Generated
from blipcore.inference.prepare import for_inference
from blipcore.model.blip import Blip


def traced(step: Callable[[], Tensor], device: torch.device, beside: Recorded | None) -> Recorded:
    step()
    graph = make_fx(step)()
    logits = graph()

    def replay() -> None:
        logits.copy_(graph())

    return Recorded(replay, logits)


@pytest.fixture
def replays(monkeypatch) -> Iterator[list[int]]:
    """Replays by a tracer, from a size's third step on; how many rows each replay was recorded for."""
    counted: list[int] = []

    def counting(step: Callable[[], Tensor], device: torch.device, beside: Recorded | None) -> Recorded:
        made = traced(step, device, beside)

        def replay() -> None:
            counted.append(len(made.logits))
            made.replay()

        return made._replace(replay=replay)

    monkeypatch.setattr(decoding, "record", counting)
    monkeypatch.setattr(Steps, "MET", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield counted


def batches(model: Blip, config: GenerateConfig, sizes: list[int]) -> list[Generated]:
    said, first = [], 0
    for size in sizes:
        embeds = torch.randn(size, 5, 16, generator=torch.Generator().manual_seed(first))
        embeds = embeds.to(model.text.lm_head.bias.device)
        kept = embeds.clone()
        said.append(generate(model, embeds, TOKENIZER, config, [str(first + i) for i in range(size)]))
        assert torch.equal(embeds, kept)  # they are the caller's
        first += size
    return said


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({"mode": "nucleus"}, 2),
        ({"mode": "nucleus", "num_captions": 3}, 2),  # by keys and values
        ({"mode": "nucleus", "num_captions": 3, "max_length": 9}, 1),  # by the image tokens
        ({"mode": "greedy", "repetition_penalty": 1.3, "prompt": ""}, 2),  # a prompt of one token, like any step
        ({"mode": "beam", "max_length": 14}, 2),
    ],
)
def test_captions_are_those_without_replay(replays: list[int], options: dict[str, Any], heads: int) -> None:
    model, config = random_captioner(heads), GenerateConfig(**{"max_length": 16, "min_length": 1, **options})
    sizes = [9, 9, 5, 12, 12]  # of which 12 are more than there was room for
    expected = batches(model, config, sizes)
    model.text.steps = Steps()
    found = batches(model, config, sizes)
    assert [said.ids for said in found] == [said.ids for said in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    rows = config.beams if config.mode == "beam" else config.num_captions
    assert len(replays) >= 5 and {count // rows for count in replays} <= {1, 2, 3, 4, 6, 8, 9, 12}
    assert len(set(replays)) > 1  # batches shrank, or came with other numbers of pictures


def test_sizes_of_recorded_steps(replays: list[int]) -> None:
    steps = Steps()
    model = random_captioner()
    steps.take_images(model.text.image_kv(torch.zeros(100, 5, 16)))
    assert [steps.size(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 17, 25, 64, 65, 96, 97, 100)] == [
        *(1, 2, 3, 4, 6, 6, 8, 12, 12, 16, 24, 32, 64, 96, 96, 100, 100)
    ]


def test_a_step_that_replays_wrongly_is_not_used(monkeypatch) -> None:
    def stale(step: Callable[[], Tensor], device: torch.device, beside: Recorded | None) -> Recorded:
        return Recorded(lambda: None, step() * 0.5)

    def broken(step: Callable[[], Tensor], device: torch.device, beside: Recorded | None) -> Recorded:
        raise RuntimeError("operation not permitted when stream is capturing")

    model, config = random_captioner(), GenerateConfig(max_length=20, min_length=10)
    expected = batches(model, config, [6, 6])
    monkeypatch.setattr(Steps, "MET", 2)
    for kind, why in ((stale, "largest apart"), (broken, "not permitted")):
        monkeypatch.setattr(decoding, "record", kind)
        model.text.steps = Steps()
        with pytest.warns(UserWarning, match=f"without CUDA graphs.*{why}") as told:
            assert [said.ids for said in batches(model, config, [6, 6])] == [said.ids for said in expected]
        assert len(told) == 1


def test_a_full_gpu_keeps_nothing(monkeypatch) -> None:
    def full(step: Callable[[], Tensor], device: torch.device, beside: Recorded | None) -> Recorded:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = random_captioner()
    monkeypatch.setattr(Steps, "MET", 2)
    monkeypatch.setattr(decoding, "record", full)
    model.text.steps = Steps()
    with pytest.raises(torch.OutOfMemoryError):
        batches(model, GenerateConfig(max_length=20, min_length=10), [6])
    assert model.text.steps.kv is None and model.text.steps.data is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"num_captions": 3}, {"mode": "beam"}])
def test_captions_of_a_gpu_are_those_without_graphs(options: dict[str, Any], monkeypatch) -> None:
    recorded: list[int] = []

    def counting(step: Callable[[], Tensor], device: torch.device, beside: Recorded | None) -> Recorded:
        recorded.append(1)
        return record(step, device, beside)

    monkeypatch.setattr(decoding, "record", counting)
    config = GenerateConfig(max_length=20, min_length=1, **options)
    plain, graphed = (
        for_inference(random_captioner(), "cuda", "fp32"),
        for_inference(random_captioner(), "cuda", "fp32"),
    )
    plain.text.steps = None
    sizes = [9, 9, 5, 1, 9, 12, 7, 12]
    expected, found = batches(plain, config, sizes), batches(graphed, config, sizes)
    assert recorded and [said.ids for said in found] == [said.ids for said in expected]
