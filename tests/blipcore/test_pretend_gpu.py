"""GPU code on a simulated GPU: results equal the CPU's, all tensors are on one device, and no step waits for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pretend_gpu import pretend_gpu
from torch import Tensor

from blipcore.api import Pipeline, load
from blipcore.checkpoints.save import save_model
from blipcore.data.eval_batches import EvalBatches
from blipcore.data.stream import Stream
from blipcore.data.transforms import EvalTransform, TrainTransform
from blipcore.device import autocast, to_device
from blipcore.generate.config import GenerateConfig
from blipcore.inference.prepare import prepare_for_inference
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask, evaluate_captioning
from blipcore.tasks.classification import evaluate_classification
from blipcore.tasks.nlvr import NLVRConfig, NLVRTask, evaluate_nlvr
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask, evaluate_retrieval
from blipcore.tasks.task import Progress, Task
from blipcore.tasks.vqa import WRITE_ANSWERS, VQAConfig, VQATask, evaluate_vqa
from blipcore.train.optim import TrainConfig, make_adamw
from blipcore.train.parallel import clip_gradients
from blipcore.train.trainer import Trainer
from blipcore.train.validation import Validator

pytestmark = pytest.mark.skipif(torch.backends.cuda.is_built(), reason="needs torch's build for CPUs")

WORDS = ["a", "red", "blue", "green", "dog", "cat", "left", "right", "what", "is", "?"]
TEXTS = ["a red dog", "a blue cat is left", "a green dog", "what ?"]
SIDE = 16
PARTS = {
    "pretrain": ("encode", "decode", "itc", "itm"),
    "retrieval": ("encode", "itc", "itm"),
    "caption": ("decode",),
    "vqa": ("encode", "vqa"),
    "nlvr": ("encode", "nlvr"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


def test_the_simulation_refuses_mixed_devices_and_records_waits() -> None:
    with pretend_gpu() as waits:
        on_gpu, on_cpu = torch.arange(6.0, device="cuda"), torch.arange(6.0)
        with pytest.raises(RuntimeError, match="tensors on cuda:0 and on the CPU"):
            on_gpu + on_cpu
        with pytest.raises(RuntimeError, match="tensors on cuda:0 and on the CPU"):
            torch.cat([on_gpu, on_cpu])
        selected = on_gpu[1:].mul_(2)[torch.tensor([0, 2], device="cuda")] + torch.tensor(1.0)
        waits.clear()
        moved = to_device(on_cpu, "cuda")
        assert waits == [] and moved.device == torch.device("cuda:0")
        assert selected.tolist() == [3.0, 7.0] and on_gpu[on_gpu > 9].tolist() == [10.0] and on_gpu.max().item() == 10
        # One wait for the mask, three for numbers that go to the host.
        assert len(waits) == 4
    assert not torch.cuda.is_available()


def make_model(name: str, tokenizer: Tokenizer, dropout: float = 0.0) -> Blip:
    torch.manual_seed(0)
    tiny = PRESETS["tiny"]
    vision = replace(tiny.vision, image_size=SIDE, width=48, depth=2, heads=2, drop_path=dropout)
    sizes = dict(vocab_size=len(tokenizer), width=32, heads=2, depth=2, hidden=64, encoder_width=48, dropout=dropout)
    model = Blip(replace(tiny, vision=vision, text=replace(tiny.text, **sizes), embed_dim=16)).select_parts(
        *PARTS[name]
    )
    # With larger weights the scores depend visibly on image and text.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)
    return model


def make_trun(name: str, tokenizer: Tokenizer, dropout: float = 0.0) -> Task:
    model = make_model(name, tokenizer, dropout)
    if name == "pretrain":
        return PretrainTask(model, tokenizer, PretrainConfig(queue_size=6, negatives="argmax"))
    if name == "retrieval":
        return RetrievalTask(model, tokenizer, RetrievalConfig(queue_size=6, negatives="argmax"))
    if name == "caption":
        return CaptioningTask(model, tokenizer, CaptioningConfig(prompt="a "))
    if name == "vqa":
        return VQATask(model, tokenizer, VQAConfig())
    return NLVRTask(model, tokenizer, NLVRConfig())


def make_samples(name: str) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    shape = (2, 3, SIDE, SIDE) if name == "nlvr" else (3, SIDE, SIDE)
    more = {"answers": ["dog", "a cat"], "weights": [0.6, 0.4], "label": True, "epoch": 0}
    return [{"key": t, "image": torch.randn(shape), "text": t, "image_id": i, **more} for i, t in enumerate(TEXTS)]


def train_step(task: Task, device: str, name: str) -> dict[str, Tensor]:
    """Take one optimizer step of two micro-batches, as the trainer does; return losses and gradient norm."""
    optimizer, outputs = make_adamw(task, TrainConfig(steps=1, lr=1e-3)), []
    task.before_step(Progress(0, 1))
    for _ in range(2):
        batch = task.collate(make_samples(name))
        batch = {key: to_device(x, device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
        with autocast(device, "fp32"):
            out = task(batch, Progress(0, 1))
        out["loss"].backward()
        outputs.append({key: value.detach() for key, value in out.items()})
    outputs[0]["norm"] = clip_gradients(task, 1.0)
    optimizer.step()
    task.after_step([{key: value for key, value in out.items() if key != "norm"} for out in outputs])
    return {key: value for key, value in outputs[0].items() if value.ndim == 0}


@pytest.mark.parametrize("name", PARTS)
def test_a_step_never_waits_for_the_device_and_gives_the_losses_of_the_cpu(name: str, tokenizer: Tokenizer) -> None:
    expected = train_step(make_trun(name, tokenizer), "cpu", name)
    task = make_trun(name, tokenizer)
    with pretend_gpu() as waits:
        task.to("cuda")
        waits.clear()
        losses = train_step(task, "cuda", name)
        assert waits == []
        losses = {key: value.cpu() for key, value in losses.items()}
        state = {key: value.cpu() for key, value in task.state_dict().items()}
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("name", PARTS)
def test_losses_under_autocast_are_close_to_fp32(name: str, tokenizer: Tokenizer) -> None:
    task = make_trun(name, tokenizer)
    with pretend_gpu(), torch.no_grad():
        task.to("cuda").train()
        batch = task.collate(make_samples(name))
        batch = {key: to_device(x, "cuda") if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
        exact = task(batch, Progress(0, 1))["loss"].cpu()
        with autocast("cuda", "bf16"):
            loss = task(batch, Progress(0, 1))["loss"]
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.cpu(), exact, rtol=0.05, atol=0.05)


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    rows = []
    for i, (colour, text) in enumerate(zip(["red", "blue", "green", "white"], TEXTS, strict=True)):
        Image.new("RGB", (20, 18), colour).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": text, "image_id": i})
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path / "train.json"


def test_a_run_waits_only_where_it_logs_saves_and_validates(
    tokenizer: Tokenizer, annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validator = Validator(lambda model: {"score": float(next(model.parameters()).detach().sum())}, ("score",), every=4)

    def make_trainer() -> Trainer:
        stream = Stream([str(annotations)], TrainTransform(SIDE, 0.5, False, 0.5), seed=0)
        config = TrainConfig(steps=4, batch_size=4, clip=1.0, recompute=1, compile=False, save_every=2, log_every=2)
        return Trainer(make_trun("pretrain", tokenizer, 0.1), stream, config, tmp_path / "run", {}, validator)

    with monkeypatch.context() as patch, pretend_gpu() as waits:
        save = Trainer._save

        def save_and_fail(trainer: Trainer, *arguments: Any) -> None:
            save(trainer, *arguments)
            raise ZeroDivisionError

        patch.setattr(Trainer, "_save", save_and_fail)
        with pytest.raises(ZeroDivisionError):
            make_trainer().fit()
        # Each wait is "file:line function: operation".
        files = {wait.split(":")[0] for wait in waits}
        assert files == {"trainer.py", "checkpoint.py", "parallel.py", "meter.py", "finite.py"}
        assert not [wait for wait in waits if "_step" in wait or "_next" in wait]
    with pretend_gpu():
        summary = make_trainer().fit()
    assert summary["steps"] == 4 and summary["best"]["step"] == 4


def make_batches(name: str, folder: Path) -> EvalBatches:
    paths = sorted(folder.glob("*.png"))
    records = []
    for i, (path, text) in enumerate(zip(paths, TEXTS, strict=True)):
        question = {"key": str(i), "question_id": i, "question": "what is red ?", "answers": ["dog"] * 10}
        record = {
            "key": str(i),
            "image": path,
            "texts": [text, "a cat"],
            "image_id": i,
            "questions": [question],
            "label": i % 2,
        }
        pair = {"key": str(i), "images": [path, paths[0]], "sentence": text, "label": i % 2}
        records.append(pair if name == "nlvr" else record)
    return EvalBatches(records, EvalTransform(SIDE), batch_size=3)


MODES = [GenerateConfig(mode=mode, prompt="a ", max_length=7) for mode in ("nucleus", "beam")]
EVALUATIONS = {
    "caption": lambda *args: [evaluate_captioning(*args, config, "plain") for config in MODES],
    "retrieval": lambda *args: [evaluate_retrieval(*args, k=3, rows=5)],
    "classify": lambda *args: [evaluate_classification(*args, ["dog", "cat"], ["a {}", "a red {}"])],
    "vqa": lambda *args: [
        evaluate_vqa(*args, WRITE_ANSWERS),
        evaluate_vqa(*args, WRITE_ANSWERS, ["a dog", "cat", "red"], k=2),
    ],
    "nlvr": lambda *args: [evaluate_nlvr(*args)],
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_give_the_results_of_the_cpu(name: str, tokenizer: Tokenizer, annotations: Path) -> None:
    model = make_model({"classify": "retrieval"}.get(name, name), tokenizer).eval()
    batches = make_batches(name, annotations.parent)
    expected = EVALUATIONS[name](model, tokenizer, batches)
    with pretend_gpu():
        model.to("cuda")
        assert EVALUATIONS[name](model, tokenizer, batches) == expected
        with autocast("cuda", "bf16"):
            EVALUATIONS[name](model, tokenizer, batches)
        EVALUATIONS[name](prepare_for_inference(model, "cuda", "bf16"), tokenizer, batches)


@pytest.mark.parametrize("name", ["caption", "retrieval", "vqa"])
def test_the_python_interface_gives_the_results_of_the_cpu(
    name: str, tokenizer: Tokenizer, tmp_path: Path, annotations: Path
) -> None:
    save_model(tmp_path / "model", make_model(name, tokenizer), tokenizer)
    images = [Image.open(path) for path in sorted(tmp_path.glob("*.png"))]

    def run(blip: Pipeline) -> list[Any]:
        if name == "caption":
            return [blip.caption(images, config) for config in MODES]
        if name == "vqa":
            return [blip.answer(images, TEXTS), blip.answer(images, TEXTS, ["a dog", "red"])]
        numbers = blip.match(images, TEXTS), blip.similarity(images, TEXTS), blip.heat_maps(images, TEXTS).cpu()
        return [torch.as_tensor(result) for result in numbers]

    expected = run(load(tmp_path / "model", device="cpu"))
    with pretend_gpu():
        blip = load(tmp_path / "model")
        assert blip.device == "cuda"
        if name == "retrieval":
            torch.testing.assert_close(run(blip), expected)
        else:
            assert run(blip) == expected
        run(load(tmp_path / "model", dtype="bf16"))
