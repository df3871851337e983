"""`capfilt bootstrap`: its plan, and one round with tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from capfilt.bootstrap import format_time_left
from capfilt.bootstrap_plan import BootstrapConfig, Step, plan
from capfilt.config import resolve
from capfilt.engine.commands import Command

TRAIN = {"batch_size": 4, "steps": 2, "log_every": 1}


@pytest.fixture
def toy(tmp_path: Path, write_shards, draw) -> Path:
    """Write a YAML file, a shard set and a few human pairs; return the path of the YAML file."""
    write_shards(tmp_path / "data", 1, 6)
    rows = []
    for number in range(6):
        draw(number).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": "a red dog" if number % 2 else "two green trees"})
    (tmp_path / "human.json").write_text(json.dumps(rows))
    tests = [row | {"caption": [row["caption"], "a picture"]} for row in rows]
    (tmp_path / "test.json").write_text(json.dumps(tests))
    train = {"train": TRAIN}
    settings = {
        "data": str(tmp_path / "data"),
        "human": [str(tmp_path / "human.json")],
        "out": str(tmp_path / "loop"),
        "human_share": 0.5,
        "tests": {"retrieval": str(tmp_path / "test.json")},
        "pretrain": {"preset": "tiny", "tokenizer": "train:60", "task": {"queue_size": 8}, **train},
        "finetune_captioner": train,
        "finetune_filter": {"retrieval": {"queue_size": 8}, **train},
        "caption": {"generate": {"prompt": "", "max_length": 8}},
        "filter": {"threshold": 0.0},
    }
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "loop.yaml"


def bootstrap(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "capfilt", "bootstrap", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_each_round_starts_from_the_model_of_the_one_before(toy: Path) -> None:
    config = resolve(BootstrapConfig, toy, ["rounds=2"])
    steps = {step.command.name: step.command.arguments for step in plan(config)}
    assert list(steps) == [
        "0-pretrain", "0-evaluate-retrieval",
        "1-finetune-captioner", "1-finetune-filter", "1-filter", "1-report", "1-pretrain",
        "1-evaluate-retrieval",
        "2-finetune-captioner", "2-finetune-filter", "2-filter", "2-report", "2-pretrain",
        "2-evaluate-retrieval",
    ]  # fmt: skip
    first = f"{config.out}/round-1/pretrain"
    assert first in steps["1-pretrain"] and f"{first}/model" in steps["2-finetune-filter"]
    assert f"{config.data}/filtered/round-2=0.5" in steps["2-pretrain"]
    arguments = steps["2-filter"]
    assert arguments[arguments.index("--captioner") + 1] == f"{config.out}/round-2/captioner/model"
    assert steps["2-report"][1:4] == (f"{config.data}/filtered/round-2", "--compare", f"{config.data}/filtered/round-1")


def test_init_replaces_the_model_of_round_0(toy: Path) -> None:
    config = resolve(BootstrapConfig, toy, ["init=some/model"])
    steps = {step.command.name: step.command.arguments for step in plan(config)}
    assert "0-pretrain" not in steps and "some/model" in steps["1-finetune-captioner"]
    assert "--init" not in steps["1-pretrain"]  # a new model, from scratch, as in the paper


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("finetune_filter.train.stepz=3", r"finetune_filter: .*train\.steps"),
        ("caption.model=other", "caption: leave out 'model'"),
        ("caption.workers=2", "caption: leave out 'workers'; one pass captions and filters"),
        ("caption.generate.top=2", r"caption: Unknown setting 'generate\.top'"),
        ("human_share=1.5", "human_share is a share"),
        ("tests.vqa=a.json", "tests takes caption and retrieval"),
        ("rounds=0", "rounds must be at least 1"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(toy: Path, setting: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan(resolve(BootstrapConfig, toy, [setting]))
    assert not (toy.parent / "loop").exists()


def test_a_finished_round_is_skipped_and_another_can_follow(toy: Path) -> None:
    planned = bootstrap(toy, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr[-2000:]
    assert json.loads(planned.stdout)["unknown"][0] == "filter" and not (toy.parent / "loop").exists()

    process = bootstrap(toy, "--json")
    assert process.returncode == 0, process.stderr[-2000:]
    summary = json.loads(process.stdout)
    assert summary["round-1"]["texts_kept"] == 12 and 0 <= summary["round-1"]["retrieval"]["mean_recall"] <= 100
    assert Path(summary["round-1"]["model"], "model.safetensors").is_file()
    assert "<title>round-1" in Path(summary["report"]).read_text()
    table = pq.read_table(toy.parent / "data" / "filtered" / "round-1" / "00000.parquet")
    assert set(table["source"].to_pylist()) == {"web", "round-1"}

    again = bootstrap(toy)
    assert again.returncode == 0
    steps = [line for line in again.stderr.splitlines() if "capfilt" in line]
    assert len(steps) == 8 and all(line.startswith("done before:") for line in steps)
    planned = json.loads(bootstrap(toy, "--dry-run", "--rounds", "2", "--json").stdout)
    assert planned["steps"] == 14 and not planned["unknown"] and planned["hours_left"] > 0

    other = bootstrap(toy, "--set", "human_share=0.25")
    assert other.returncode == 2 and "human_share: 0.5 -> 0.25" in other.stderr


def test_the_amount_of_a_finetuning_in_epochs_comes_from_round_1(toy: Path) -> None:
    settings = ["rounds=2", "finetune_filter.train.steps=0", "finetune_filter.train.epochs=3"]
    config = resolve(BootstrapConfig, toy, settings)
    amounts = lambda: {step.command.name: step.amount for step in plan(config)}  # noqa: E731
    assert amounts()["2-finetune-filter"] is None
    logs = Path(config.out) / "logs"
    logs.mkdir(parents=True)
    (logs / "1-finetune-filter.json").write_text('{"steps": 5}')
    assert amounts()["2-finetune-filter"] == 20


def test_the_time_left_is_estimated_before_the_first_shard_is_done() -> None:
    step = Step(Command("1-filter", ()), "filter", "pictures", 10_000)
    assert format_time_left(step, 100.0, "caption and score: 0 of 4 shards, 10.0 pictures/s") == ", 0:15:00 left"
    assert format_time_left(step, 100.0, "caption and score: 1 of 4 shards, 10.0 pictures/s, 0:12:00 left") == ""
    assert format_time_left(step, 1.0, "loading") == ""
    assert format_time_left(Step(step.command, "report"), 1.0, "9 pictures/s") == ""
