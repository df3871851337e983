"""The plan of a bootstrap run: its commands in order, mistakes in its sections, and the amount of work."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from capfilt.bootstrap.plan import BootstrapConfig, chosen_by, missing_files, plan, scores_file
from capfilt.config import resolve


def test_each_round_starts_from_the_model_of_the_one_before(loop_yaml: Path) -> None:
    config = resolve(BootstrapConfig, loop_yaml, ["rounds=2"])
    steps = {step.command.name: step.command.arguments for step in plan(config)}
    assert list(steps) == [
        "0-pretrain", "0-evaluate-retrieval",
        "1-finetune-captioner", "1-finetune-filter", "0-evaluate-finetuned-retrieval",
        "1-filter", "1-report", "1-pretrain", "1-evaluate-retrieval",
        "2-finetune-captioner", "2-finetune-filter", "1-evaluate-finetuned-retrieval",
        "2-filter", "2-frozen-filter", "2-report", "2-pretrain", "2-evaluate-retrieval",
        "3-finetune-captioner", "3-finetune-filter", "2-evaluate-finetuned-retrieval",
    ]  # fmt: skip
    first = f"{config.out}/round-1/pretrain"
    assert first in steps["1-pretrain"] and f"{first}/model" in steps["2-finetune-filter"]
    assert f"{config.data}/filtered/round-2=0.5" in steps["2-pretrain"]
    arguments = steps["2-filter"]
    assert arguments[arguments.index("--captioner") + 1] == f"{config.out}/round-2/captioner/model"
    assert f"{config.out}/round-2/filter/model" in steps["1-evaluate-finetuned-retrieval"]
    assert steps["2-report"][1:4] == (f"{config.data}/filtered/round-2", "--compare", f"{config.data}/filtered/round-1")


def sources(arguments: tuple[str, ...]) -> list[str]:
    """Return the values of --sources."""
    return [value for option, value in pairwise(arguments) if option == "--sources"]


def test_captions_of_earlier_rounds_are_filtered_again(loop_yaml: Path) -> None:
    def steps(*settings: str) -> dict[str, tuple[str, ...]]:
        config = resolve(BootstrapConfig, loop_yaml, ["rounds=3", *settings])
        return {step.command.name: step.command.arguments for step in plan(config)}

    accumulated = steps()
    assert sources(accumulated["3-filter"]) == ["web", "round-1", "round-2", "round-3"]
    assert sources(accumulated["3-frozen-filter"]) == ["round-3"]
    assert any(argument.endswith("round-1/filter/model") for argument in accumulated["3-frozen-filter"])
    replaced = steps("accumulate=false", "frozen_filter=false")
    assert sources(replaced["3-filter"]) == ["web", "round-3"] and "3-frozen-filter" not in replaced


def test_the_validation_file_or_else_the_first_test_chooses_the_round(loop_yaml: Path) -> None:
    config = resolve(BootstrapConfig, loop_yaml)
    assert chosen_by(config) == "retrieval"
    config = resolve(BootstrapConfig, loop_yaml, [f"validation={loop_yaml.parent / 'test.json'}"])
    steps = {step.command.name: step.command.arguments for step in plan(config)}
    assert chosen_by(config) == "validation"
    assert f"scores={scores_file(config, 1, 'validation')}" in steps["1-validate"]
    assert chosen_by(replace(config, validation=None, tests={})) is None


def test_init_replaces_the_model_of_round_0(loop_yaml: Path) -> None:
    config = resolve(BootstrapConfig, loop_yaml, ["init=some/model"])
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
def test_mistakes_are_reported_before_anything_runs(loop_yaml: Path, setting: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan(resolve(BootstrapConfig, loop_yaml, [setting]))
    assert not (loop_yaml.parent / "loop").exists()


def test_the_amount_of_a_finetuning_in_epochs_comes_from_round_1(loop_yaml: Path) -> None:
    settings = ["rounds=2", "finetune_filter.train.steps=0", "finetune_filter.train.epochs=3"]
    config = resolve(BootstrapConfig, loop_yaml, settings)
    amounts = lambda: {step.command.name: step.amount for step in plan(config)}  # noqa: E731
    assert amounts()["2-finetune-filter"] is None
    logs = Path(config.out) / "logs"
    logs.mkdir(parents=True)
    (logs / "1-finetune-filter.json").write_text('{"steps": 5}')
    assert amounts()["2-finetune-filter"] == 20


def test_input_files_that_do_not_exist_are_listed_once(loop_yaml: Path) -> None:
    assert missing_files(resolve(BootstrapConfig, loop_yaml)) == []
    missing = ["tests.caption=no.json", "human=[no.json]", "data=s3://bucket/data"]
    assert missing_files(resolve(BootstrapConfig, loop_yaml, missing)) == ["no.json"]
    # With a list of URLs, the shard set is written by the run.
    assert missing_files(resolve(BootstrapConfig, loop_yaml, ["urls=urls.txt", "data=new"])) == ["urls.txt"]
