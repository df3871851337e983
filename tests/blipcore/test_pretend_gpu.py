"""What of a GPU can be checked without one: all of a model's tensors are there, and no step waits for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pretend_gpu import pretend_gpu

from blipcore.api import Pipeline, load
from blipcore.checkpoints.save import save_model
from blipcore.data.eval_batches import Pictures
from blipcore.data.stream import Stream
from blipcore.data.transforms import eval_transform, train_transform
from blipcore.device import autocast, to_device
from blipcore.generate.config import GenerateConfig
from blipcore.inference.prepare import for_inference
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
from blipcore.train.optim import TrainConfig, adamw
from blipcore.train.parallel import clip_gradients
from blipcore.train.trainer import Trainer
from blipcore.train.validation import Judge

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


def test_it_tells_what_a_gpu_would_not_do_and_where_it_is_waited_for():
    with pretend_gpu() as waits:
        there, here = torch.arange(6.0, device="cuda"), torch.arange(6.0)
        with pytest.raises(RuntimeError, match="tensors on cuda:0 and on the CPU"):
            there + here
        with pytest.raises(RuntimeError, match="tensors on cuda:0 and on the CPU"):
            torch.cat([there, here])
        kept = there[1:].mul_(2)[torch.tensor([0, 2], device="cuda")] + torch.tensor(1.0)
        waits.clear()
        moved = to_device(here, "cuda")
        assert waits == [] and moved.device == torch.device("cuda:0")
        assert kept.tolist() == [3.0, 7.0] and there[there > 9].tolist() == [10.0] and there.max().item() == 10
        assert len(waits) == 4  # a mask, and three times numbers for the host
    assert not torch.cuda.is_available()


def model_of(name: str, tokenizer: Tokenizer, dropout: float = 0.0) -> Blip:
    torch.manual_seed(0)
    tiny = PRESETS["tiny"]
    vision = replace(tiny.vision, image_size=SIDE, width=48, depth=2, heads=2, drop_path=dropout)
    sizes = dict(vocab_size=len(tokenizer), width=32, heads=2, depth=2, hidden=64, encoder_width=48, dropout=dropout)
    model = Blip(replace(tiny, vision=vision, text=replace(tiny.text, **sizes), embed_dim=16)).only(*PARTS[name])
    for parameter in model.parameters():  # else its scores are all but blind to picture and text
        parameter.data.mul_(3.0) if parameter.ndim > 1 else None
    return model


def task_of(name: str, tokenizer: Tokenizer, dropout: float = 0.0) -> Task:
    model = model_of(name, tokenizer, dropout)
    if name == "pretrain":
        return PretrainTask(model, tokenizer, PretrainConfig(queue_size=6, negatives="argmax"))
    if name == "retrieval":
        return RetrievalTask(model, tokenizer, RetrievalConfig(queue_size=6, negatives="argmax"))
    kinds = {"caption": (CaptioningTask, CaptioningConfig(prompt="a ")), "vqa": (VQATask, VQAConfig())}
    kind, config = kinds.get(name, (NLVRTask, NLVRConfig()))
    return kind(model, tokenizer, config)


def samples(name: str) -> list[dict]:
    torch.manual_seed(1)
    shape = (2, 3, SIDE, SIDE) if name == "nlvr" else (3, SIDE, SIDE)
    more = {"answers": ["dog", "a cat"], "weights": [0.6, 0.4], "label": True, "epoch": 0}
    return [{"key": t, "image": torch.randn(shape), "text": t, "image_id": i, **more} for i, t in enumerate(TEXTS)]


def step(task: Task, device: str, name: str, dtype: str = "fp32") -> dict[str, float]:
    """Two micro-batches as the trainer does them; the losses."""
    optimizer, outputs = adamw(task, TrainConfig(steps=1, lr=1e-3)), []
    task.before_step(Progress(0, 1))
    for _ in range(2):
        batch = task.collate(samples(name))
        batch = {key: to_device(x, device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
        with autocast(device, dtype):
            out = task(batch, Progress(0, 1))
        out["loss"].backward()
        outputs.append({key: value.detach() for key, value in out.items()})
    outputs[0]["norm"] = clip_gradients(task, 1.0)
    optimizer.step()
    task.after_step([{key: value for key, value in out.items() if key != "norm"} for out in outputs])
    return {key: value for key, value in outputs[0].items() if value.ndim == 0}


@pytest.mark.parametrize("name", PARTS)
def test_a_step_does_not_wait_for_the_device_and_has_the_numbers_of_the_cpu(name, tokenizer):
    expected = step(task_of(name, tokenizer), "cpu", name)
    task = task_of(name, tokenizer)
    state = {}
    with pretend_gpu() as waits:
        task.to("cuda")
        waits.clear()
        found = step(task, "cuda", name)
        assert waits == []
        found = {key: value.cpu() for key, value in found.items()}
        state = {key: value.cpu() for key, value in task.state_dict().items()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("name", PARTS)
def test_losses_under_autocast_and_with_converted_weights(name, tokenizer):
    task = task_of(name, tokenizer)
    with pretend_gpu(), torch.no_grad():
        task.to("cuda").train()
        batch = task.collate(samples(name))
        batch = {key: to_device(x, "cuda") if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
        exact = task(batch, Progress(0, 1))["loss"].cpu()
        with autocast("cuda", "bf16"):
            found = task(batch, Progress(0, 1))
        assert found["loss"].dtype == torch.float32
        torch.testing.assert_close(found["loss"].cpu(), exact, rtol=0.05, atol=0.05)


@pytest.fixture
def annotations(tmp_path) -> Path:
    rows = []
    for i, (colour, text) in enumerate(zip(["red", "blue", "green", "white"], TEXTS, strict=True)):
        Image.new("RGB", (20, 18), colour).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": text, "image_id": i})
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path / "train.json"


def test_a_run_waits_only_where_it_logs_saves_and_validates(tokenizer, annotations, tmp_path, monkeypatch):
    judge = Judge(lambda model: {"score": float(next(model.parameters()).detach().sum())}, ("score",), every=4)

    def trainer() -> Trainer:
        stream = Stream([str(annotations)], train_transform(SIDE, 0.5, False, 0.5), seed=0)
        config = TrainConfig(steps=4, batch_size=4, clip=1.0, recompute=1, compile=False, save_every=2, log_every=2)
        return Trainer(task_of("pretrain", tokenizer, 0.1), stream, config, tmp_path / "run", {}, judge)

    with monkeypatch.context() as patch, pretend_gpu() as waits:
        saved = Trainer._save
        patch.setattr(Trainer, "_save", lambda self, optimizer: (saved(self, optimizer), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            trainer().fit()
        assert {wait.split(":")[0] for wait in waits} == {"trainer.py", "checkpoint.py", "parallel.py"}
        assert not [wait for wait in waits if "_step" in wait or "_next" in wait]
    with pretend_gpu():
        summary = trainer().fit()
    assert summary["steps"] == 4 and summary["best"]["step"] == 4


def pictures(name: str, folder: Path) -> Pictures:
    paths = sorted(folder.glob("*.png"))
    records = []
    for i, (path, text) in enumerate(zip(paths, TEXTS, strict=True)):
        asked = {"key": str(i), "question_id": i, "question": "what is red ?", "answers": ["dog"] * 10}
        record = {
            "key": str(i),
            "image": path,
            "texts": [text, "a cat"],
            "image_id": i,
            "questions": [asked],
            "label": i % 2,
        }
        pair = {"key": str(i), "images": [path, paths[0]], "sentence": text, "label": i % 2}
        records.append(pair if name == "nlvr" else record)
    return Pictures(records, eval_transform(SIDE), batch_size=3)


MODES = [GenerateConfig(mode=mode, prompt="a ", max_length=7) for mode in ("nucleus", "beam")]
EXAMS = {
    "caption": lambda *args: [evaluate_captioning(*args, config, "plain") for config in MODES],
    "retrieval": lambda *args: [evaluate_retrieval(*args, k=3, rows=5)],
    "classify": lambda *args: [evaluate_classification(*args, ["dog", "cat"], ["a {}", "a red {}"])],
    "vqa": lambda *args: [
        evaluate_vqa(*args, WRITE_ANSWERS),
        evaluate_vqa(*args, WRITE_ANSWERS, ["a dog", "cat", "red"], k=2),
    ],
    "nlvr": lambda *args: [evaluate_nlvr(*args)],
}


@pytest.mark.parametrize("name", EXAMS)
def test_evaluations_have_the_results_of_the_cpu(name, tokenizer, annotations):
    model = model_of({"classify": "retrieval"}.get(name, name), tokenizer).eval()
    some = pictures(name, annotations.parent)
    expected = EXAMS[name](model, tokenizer, some)
    with pretend_gpu():
        model.to("cuda")
        assert EXAMS[name](model, tokenizer, some) == expected
        with autocast("cuda", "bf16"):
            EXAMS[name](model, tokenizer, some)
        EXAMS[name](for_inference(model, "cuda", "bf16"), tokenizer, some)


@pytest.mark.parametrize("name", ["caption", "retrieval", "vqa"])
def test_the_python_interface_has_the_results_of_the_cpu(name, tokenizer, tmp_path, annotations):
    save_model(tmp_path / "model", model_of(name, tokenizer), tokenizer)
    images = [Image.open(path) for path in sorted(tmp_path.glob("*.png"))]

    def ask(blip: Pipeline) -> list:
        if name == "caption":
            return [blip.caption(images, config) for config in MODES]
        if name == "vqa":
            return [blip.answer(images, TEXTS), blip.answer(images, TEXTS, ["a dog", "red"])]
        numbers = blip.match(images, TEXTS), blip.similarity(images, TEXTS), blip.heat_maps(images, TEXTS).cpu()
        return [torch.as_tensor(found) for found in numbers]

    expected = ask(load(tmp_path / "model", device="cpu"))
    with pretend_gpu():
        blip = load(tmp_path / "model")
        assert blip.device == "cuda"
        torch.testing.assert_close(ask(blip), expected) if name == "retrieval" else None
        assert name == "retrieval" or ask(blip) == expected
        ask(load(tmp_path / "model", dtype="bf16"))
