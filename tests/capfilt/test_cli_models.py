"""Commands that train, evaluate and convert: the settings that they pass on; no model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from capfilt.cli import app


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace the work of the commands; return the list of its arguments."""
    calls: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return {"ok": 1}

    for name in ("train.launch.launch", "evaluation.evaluate", "checkpoints.convert.convert"):
        monkeypatch.setattr(f"blipcore.{name}", record)
    return calls


def run(line: str) -> None:
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0 and result.stdout.startswith("ok  "), result.output


TRAIN_OPTIONS = "--steps 7 --lr 0.5 --batch-size 3 --device cpu --dtype fp32 --workers 2 --seed 9"


@pytest.mark.parametrize(
    ("line", "work"),
    [
        ("pretrain a=0.5 b=0.5 --preset tiny", "pretrain"),
        ("finetune caption a.json b.json --init m", "finetune"),
    ],
)
def test_options_of_training_set_the_trainer(line: str, work: str, calls: list[tuple[Any, ...]]) -> None:
    run(f"{line} {TRAIN_OPTIONS} --nproc 2 --out runs/r1 --continue")
    [(nproc, function, settings, out, may_change)] = calls
    assert (nproc, function.__name__, out, may_change) == (2, work, Path("runs/r1"), True)
    train = settings.train
    assert (train.steps, train.lr, train.batch_size, train.seed) == (7, 0.5, 3, 9)
    assert (train.device, train.dtype, train.workers) == ("cpu", "fp32", 2)


def test_data_and_models_are_passed_on(calls: list[tuple[Any, ...]]) -> None:
    run("pretrain a=0.5 b=0.5 --vision v --text t --tokenizer train:50 --out r")
    run("finetune vqa a.json --init m --image-size 96 --epochs 2 --out r")
    (_, _, pretraining, *_), (_, _, finetuning, *_) = calls
    assert (pretraining.data, pretraining.vision, pretraining.text) == (["a=0.5", "b=0.5"], "v", "t")
    assert (pretraining.tokenizer, pretraining.init) == ("train:50", None)
    assert (finetuning.task, finetuning.annotations, finetuning.init) == ("vqa", ["a.json"], "m")
    assert (finetuning.image_size, finetuning.train.epochs) == (96, 2)


def test_options_of_an_evaluation_and_a_conversion_are_passed_on(calls: list[tuple[Any, ...]]) -> None:
    run("evaluate vqa a.json --model m --answers b.txt --results r.json --batch-size 8 --set k=5")
    run("convert a.pth out --to hf --task caption --numerics transformers --set model.vision.heads=3")
    (evaluation,), (conversion,) = calls
    assert (evaluation.task, evaluation.annotations, evaluation.model) == ("vqa", "a.json", "m")
    assert (evaluation.answers, evaluation.results, evaluation.batch_size, evaluation.k) == ("b.txt", "r.json", 8, 5)
    assert (conversion.source, conversion.target, conversion.to) == ("a.pth", Path("out"), "hf")
    assert (conversion.task, conversion.numerics) == ("caption", "transformers")
    assert conversion.model == {"vision": {"heads": 3}}
