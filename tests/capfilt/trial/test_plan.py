"""The plan of a trial: equal training of all sets, seeds that stay when runs are added, and clear errors."""

from __future__ import annotations

import pytest

from capfilt.trial.plan import TrialConfig, parse_tests, plan, training_runs


def config(**settings: object) -> TrialConfig:
    return TrialConfig(**{"selections": ["data/filtered/a", "b.json"], "test": ["test.json"], "out": "o"} | settings)


def commands(settings: TrialConfig) -> list[str]:
    return [str(step.command) for _, steps in plan(settings) for step in steps]


def test_all_sets_train_alike_with_their_own_seeds() -> None:
    lines = commands(config(human=["h.json", "i.json"], steps=7, pretrain={"preset": "tiny"}, test=["caption=t.json"]))
    assert lines[:2] == [
        "capfilt pretrain data/filtered/a=0.8 h.json=0.1 i.json=0.1 --out o/runs/1-a-0/pretrain --steps 7 --seed 0 "
        "--config o/configs/pretrain.yaml",
        "capfilt evaluate caption t.json --model o/runs/1-a-0/pretrain/model --set scores=o/runs/1-a-0/caption.json",
    ]
    assert lines[2].startswith("capfilt pretrain b.json=0.8") and "--seed 1000 " in lines[2]
    assert len(lines) == 2 * 3 * 2


def test_with_finetuning_each_test_has_its_own_model() -> None:
    lines = commands(config(human=["h.json"], finetune_steps=5, seeds=2))
    names = [step.command.name for step in plan(config(human=["h.json"], finetune_steps=5, seeds=2))[0][1]]
    assert names == [
        *("1-a-0-pretrain", "1-a-0-finetune-captioner", "1-a-0-evaluate-caption"),
        *("1-a-0-finetune-filter", "1-a-0-evaluate-retrieval"),
    ]
    assert "finetune caption h.json --init o/runs/1-a-0/pretrain/model" in lines[1] and "--steps 5 --seed 0" in lines[1]
    assert "--model o/runs/1-a-0/finetune_filter/model" in lines[4]


def test_more_seeds_keep_the_runs_that_exist() -> None:
    few, many = ({(run.name, run.seed) for run in training_runs(config(seeds=seeds))} for seeds in (2, 5))
    assert few < many and len({seed for _, seed in many}) == len(many) == 10


def test_the_set_itself_can_be_its_control() -> None:
    runs = training_runs(config(selections=["a", "a"], seeds=2))
    assert len({run.folder for run in runs}) == len({run.seed for run in runs}) == 4


def test_tests_are_given_together_or_one_by_one() -> None:
    assert parse_tests(["t.json"]) == {"caption": "t.json", "retrieval": "t.json"}
    assert parse_tests(["t.json", "retrieval=r=1.json"]) == {"caption": "t.json", "retrieval": "r=1.json"}
    assert parse_tests(["retrieval=r.json"]) == {"retrieval": "r.json"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selections": ["a"]}, "compares at least two sets; give one more"),
        ({"seeds": 1}, "seeds must be from 2 to 1000, not 1: the difference of two runs"),
        ({"test": []}, "needs held-out annotations: give --test FILE"),
        ({"test": ["vqa=t.json"]}, "test is FILE, caption=FILE or retrieval=FILE, not 'vqa=t.json'"),
        ({"test": ["caption="]}, "test is FILE"),
        ({"steps": 0}, "steps and parallel must be at least 1"),
        ({"human_share": 1.0}, "human_share is a share of a batch"),
        ({"finetune_steps": 3}, "Finetuning needs human pairs"),
        ({"pretrain": {"train": {"seed": 3}}}, r"pretrain: leave out 'train.seed'; the trial sets it"),
        ({"pretrain": {"data": ["x"]}}, "pretrain: leave out 'data'"),
        ({"pretrain": {"presett": "tiny"}}, "pretrain: Unknown setting 'presett'"),
        ({"evaluate": {"words": "java"}}, "evaluate: "),
    ],
)
def test_errors_are_one_sentence(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan(config(**settings))
    assert "\n" not in str(caught.value)
