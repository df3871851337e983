"""Compiled layers and recomputed activations: results do not change, programs and memory are as few as expected."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.task import Batch, Progress
from blipcore.train.compile import disable_compile, prepare_layers
from blipcore.train.optim import TrainConfig

START = Progress(0, 1)
WORDS = ["a", "red", "blue", "dog", "cat"]


@pytest.fixture
def task() -> PretrainTask:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    vision = replace(PRESETS["tiny"].vision, image_size=16, width=32, depth=12, heads=2, drop_path=0.1)
    text = replace(PRESETS["tiny"].text, vocab_size=len(tokenizer), width=32, depth=12, heads=2, hidden=64)
    config = replace(PRESETS["tiny"], vision=vision, text=replace(text, encoder_width=32, dropout=0.1), embed_dim=16)
    return PretrainTask(Blip(config), tokenizer, PretrainConfig(queue_size=8, negatives="argmax")).train()


def batch(task: PretrainTask, words: int) -> Batch:
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(words - i % 2)) for i in range(4)]
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(words))
    return task.collate([{"key": t, "image": image, "text": t} for t, image in zip(texts, images, strict=True)])


def gradients(task: PretrainTask, words: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients, and bytes of activations kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task(batch(task, words), START)["loss"]
    task.zero_grad()
    loss.backward()
    weights = sum(p.untyped_storage().nbytes() for p in task.model.parameters())
    return (
        loss.detach(),
        {name: p.grad.clone() for name, p in task.model.named_parameters()},
        sum(kept.values()) - weights,
    )


def test_recomputed_activations_are_not_kept_and_gradients_are_the_same(task) -> None:
    *before, kept = gradients(task, 5)
    prepare_layers(task, TrainConfig(steps=1, recompute=12, compile=False), "cpu")
    *after, fewer = gradients(task, 5)
    torch.testing.assert_close(before, after, rtol=0, atol=0)  # with the same dropout
    assert fewer < kept / 2
    assert task.momentum.visual_encoder._recomputed_blocks == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_layers_of_one_kind_share_a_program_for_all_depths_and_text_lengths(task, monkeypatch) -> None:
    task.eval()  # compiled layers draw dropout in another order
    names = list(task.state_dict())
    expected = {words: gradients(task, words)[:2] for words in (4, 7, 9)}
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    prepare_layers(task, TrainConfig(steps=1, compile=True), "cpu")
    assert list(task.state_dict()) == names
    programs = []
    for words, result in expected.items():
        torch.testing.assert_close(gradients(task, words)[:2], result, atol=1e-5, rtol=1e-4)
        programs.append(counter.frame_count)
    assert 0 < programs[0] <= 12, "12 layers, each in up to 4 roles"
    assert programs[1:] == programs[:1] * 2, "another text length was compiled again"
    with disable_compile(task), torch.no_grad():
        task(batch(task, 3), START)
    assert counter.frame_count == programs[0]
    torch._dynamo.reset()


def test_layers_are_compiled_on_a_gpu_by_default(task, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    for setting, device, expected in [
        (None, "cuda", True),
        (None, "cpu", False),
        (True, "cpu", True),
        (False, "cuda", 0),
    ]:
        compiled.clear()
        prepare_layers(task, TrainConfig(steps=1, compile=setting), device)
        assert bool(compiled) == expected
    assert torch._dynamo.config.optimize_ddp is False  # would split layers at the borders of DDP's buckets
