"""Checks that need a GPU (`pytest -m gpu`): results equal the CPU's, and a training step never waits."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from blipcore.checkpoints.load import load_model
from blipcore.checkpoints.save import save_model
from blipcore.data.stream import Stream
from blipcore.data.transforms import EvalTransform, TrainTransform
from blipcore.device import Backend, autocast, supports_bf16
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.inference.prepare import prepare_for_inference
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Batch, Progress, replace_first
from blipcore.train.compile import prepare_layers
from blipcore.train.launch import launch
from blipcore.train.optim import Parallel, TrainConfig
from blipcore.train.runs import PretrainRun, pretrain
from blipcore.train.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

COLOURS = ["red", "green", "blue", "black", "white", "yellow", "orange", "pink"]
TEXTS = [f"a {colour} picture{' of nothing else' * (i % 3)}" for i, colour in enumerate(COLOURS)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, vocab_size=100)


@pytest.fixture
def model(tokenizer) -> Blip:
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    vision, text = replace(preset.vision, drop_path=0.1), replace(preset.text, vocab_size=len(tokenizer), dropout=0.1)
    return Blip(replace(preset, vision=vision, text=text))


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i, (colour, text) in enumerate(zip(COLOURS, TEXTS, strict=True)):
        Image.new("RGB", (64, 48), colour).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": text, "image_id": i})
    (folder / "train.json").write_text(json.dumps(rows))
    return folder / "train.json"


@pytest.fixture
def full_fp32() -> Iterator[None]:
    """Compute matrix products in full float32, to compare with the CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def make_batch(task: PretrainTask, texts: list[str], device: str) -> Batch:
    images = torch.randn(len(texts), 3, 48, 48, generator=torch.Generator().manual_seed(1))
    samples = [{"key": text, "image": images[i], "text": text, "image_id": i} for i, text in enumerate(texts)]
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in task.collate(samples).items()}


def losses_and_gradients(task: PretrainTask, dtype: str, texts: list[str]) -> dict[str, torch.Tensor]:
    device = next(task.parameters()).device.type
    task.zero_grad()
    with autocast(device, dtype):
        out = task(make_batch(task, texts, device), Progress(0, 1))
    out["loss"].backward()
    gradients = {name: p.grad.float().cpu() for name, p in task.model.named_parameters()}
    return gradients | {name: value.detach().float().cpu() for name, value in out.items() if name.startswith("loss")}


def relative_error(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the relative error over all tensors together."""
    error = torch.stack([(results[name] - expected[name]).norm() for name in expected]).norm()
    return (error / torch.stack([value.norm() for value in expected.values()]).norm()).item()


@pytest.fixture
def task(model, tokenizer, monkeypatch) -> PretrainTask:
    """Return a task without dropout; its negatives are the next sample's, independent of rounding."""
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=16)).eval()
    monkeypatch.setattr(task, "negatives", lambda i2t, *_: [torch.arange(len(i2t), device=i2t.device).roll(1)] * 2)
    return task


def test_a_step_in_fp32_equals_that_of_the_cpu(task: PretrainTask, full_fp32: None) -> None:
    expected = losses_and_gradients(task, "fp32", TEXTS)
    assert relative_error(losses_and_gradients(task.cuda(), "fp32", TEXTS), expected) < 1e-4


def test_bf16_and_compiled_layers_are_close_to_fp32_for_texts_of_any_length(task: PretrainTask) -> None:
    if not supports_bf16("cuda"):
        pytest.skip("no bf16 in hardware")
    task.cuda()
    batches = (TEXTS[:4], TEXTS[4:], ["a red picture", "a blue one", "a", "pink"])
    for texts in batches:
        assert (
            relative_error(losses_and_gradients(task, "bf16", texts), losses_and_gradients(task, "fp32", texts)) < 3e-2
        )
    expected = [losses_and_gradients(task, "bf16", texts) for texts in batches]
    prepare_layers(task, TrainConfig(steps=1), "cuda")
    for texts, eager in zip(batches, expected, strict=True):
        assert relative_error(losses_and_gradients(task, "bf16", texts), eager) < 2e-2


@pytest.mark.parametrize("backend", ["torch", "compile"])
@torch.inference_mode()
def test_inference_in_bf16_is_close_to_fp32(model: Blip, tokenizer: Tokenizer, backend: Backend) -> None:
    if not supports_bf16("cuda"):
        pytest.skip("no bf16 in hardware")
    pixels = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(1)).cuda()
    model.cuda().eval()
    expected = model.encode_image(pixels)
    prepared = prepare_for_inference(copy.deepcopy(model), "cuda", "bf16", backend)
    # The last batch of a shard is smaller.
    for count in (6, 3):
        embeds = prepared.encode_image(pixels[:count])
        assert embeds.dtype == torch.bfloat16
        assert ((embeds.float() - expected[:count]).norm() / expected[:count].norm()).item() < 3e-2
    captions = generate(prepared, prepared.encode_image(pixels), tokenizer, GenerateConfig(prompt="a "), TEXTS[:6])
    assert len(captions.ids) == 6 and all(value < 0 for value in captions.logprob)


TASKS = {
    "pretrain": lambda model, tokenizer: PretrainTask(model, tokenizer, PretrainConfig(queue_size=16)),
    "retrieval": lambda model, tokenizer: RetrievalTask(
        model.select_parts("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=16)
    ),
    "caption": lambda model, tokenizer: CaptioningTask(model.select_parts("decode"), tokenizer, CaptioningConfig()),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_no_step_waits_for_the_device(
    name: str,
    compiled: bool,
    model: Blip,
    tokenizer: Tokenizer,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA raises an error where the host would wait. The first three steps compile and may wait."""
    train_step = Trainer._step

    def step(self: Trainer, *arguments: object) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.state.step >= 3 else "default")
        try:
            train_step(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", step)
    config = TrainConfig(
        steps=8, batch_size=4, accumulate=2, clip=1.0, recompute=1, compile=compiled, device="cuda", log_every=4
    )
    stream = Stream([str(annotations)], TrainTransform(48, 0.5, False, 0.5), seed=0)
    summary = Trainer(TASKS[name](model, tokenizer), stream, config, tmp_path, {}).fit()
    assert summary["steps"] == 8 and summary["losses"]["loss"] > 0


def test_a_stopped_run_resumes_with_the_same_dropout(
    model: Blip, tokenizer: Tokenizer, annotations: Path, tmp_path: Path
) -> None:
    def fit(folder: str, stop: bool = False) -> dict:
        config = TrainConfig(
            steps=6, batch_size=4, compile=False, dtype="fp32", device="cuda", log_every=3, save_every=3
        )
        stream = Stream([str(annotations)], TrainTransform(48, 0.5, False, 0.5), seed=0)
        task = CaptioningTask(copy.deepcopy(model).select_parts("decode"), tokenizer, CaptioningConfig())
        trainer = Trainer(task, stream, config, tmp_path / folder, {})
        if not stop:
            return trainer.fit()
        save = trainer._save

        def save_and_fail(*arguments: object) -> None:
            save(*arguments)
            raise ZeroDivisionError

        trainer._save = save_and_fail
        with pytest.raises(ZeroDivisionError):
            trainer.fit()
        return {}

    uninterrupted = fit("uninterrupted")
    fit("stopped", stop=True)
    assert fit("stopped")["losses"] == pytest.approx(uninterrupted["losses"], rel=1e-3)


@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_gpus_learn_what_two_processes_on_the_cpu_learn(
    how: Parallel, compiled: bool, annotations: Path, tmp_path: Path
) -> None:
    def losses(device: str) -> dict:
        contrast = PretrainConfig(queue_size=16, negatives="argmax", itm_across_ranks=True)
        train = TrainConfig(steps=4, batch_size=4, dtype="fp32", parallel=how, device=device, log_every=4, save_every=2)
        train.compile = compiled and device == "cuda"
        run = PretrainRun([str(annotations)], "tiny", tokenizer="train:60", task=contrast, train=train)
        return launch(2, pretrain, run, tmp_path / device)["losses"]

    assert losses("cuda") == pytest.approx(losses("cpu"), rel=1e-2)


def test_recomputed_activations_save_memory(model: Blip, tokenizer: Tokenizer) -> None:
    sizes = replace(PRESETS["base"].vision, image_size=48, patch_size=4)
    text = replace(PRESETS["base"].text, vocab_size=len(tokenizer))
    task = PretrainTask(Blip(replace(PRESETS["base"], vision=sizes, text=text)), tokenizer, PretrainConfig()).cuda()
    peaks = []
    for layers in (0, 12):
        prepare_layers(task, TrainConfig(steps=1, recompute=layers, compile=False), "cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with autocast("cuda", "bf16"):
            loss = task.train()(make_batch(task, TEXTS * 2, "cuda"), Progress(0, 1))["loss"]
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del loss
    assert peaks[1] < peaks[0] / 2


@torch.no_grad()
def test_captions_and_scores_equal_those_of_the_cpu(
    model: Blip, tokenizer: Tokenizer, annotations: Path, tmp_path: Path, full_fp32: None
) -> None:
    save_model(tmp_path / "model", model, tokenizer)
    transform = EvalTransform(48)
    pixels = torch.stack([transform(Image.open(annotations.parent / f"{i}.png")) for i in range(len(TEXTS))])
    ids, mask = tokenizer(TEXTS, max_length=30)
    results = []
    for device in ("cpu", "cuda"):
        loaded, _ = load_model(tmp_path / "model")
        loaded.to(device)
        embeds = loaded.encode_image(pixels.to(device))
        captions = [
            generate(loaded, embeds, tokenizer, replace(options, prompt="a "), TEXTS)
            for options in (GenerateConfig(), GenerateConfig(mode="beam"), GenerateConfig(mode="greedy"))
        ]
        kv = loaded.text.image_kv(embeds)
        itm = loaded.itm_logits(loaded.text.fuse(replace_first(ids, tokenizer.enc).to(device), mask.to(device), kv))
        itc = loaded.image_feat(embeds) @ loaded.text_feat(loaded.text.encode(ids.to(device), mask.to(device))).T
        logprobs = [torch.tensor(texts.logprob) for texts in captions]
        results.append(([texts.ids for texts in captions], {"itm": itm.cpu(), "itc": itc.cpu(), "logprob": logprobs}))
    (cpu_ids, cpu), (gpu_ids, gpu) = results
    assert gpu_ids == cpu_ids
    torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=1e-3)
