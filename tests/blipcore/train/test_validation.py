"""Validation during training: the best model is kept, and validation changes nothing else."""

import json
from collections.abc import Callable

import pytest
import torch
from toy_training import Killed, OnBatch, kill_at_batch, read_weights, same_tensors, toy_trainer, untimed_records

from blipcore.train.state import TrainState
from blipcore.train.trainer import Trainer
from blipcore.train.validation import Validator, describe_validation


def test_the_best_model_on_the_validation_set_is_kept(shards, tmp_path) -> None:
    """Here the second of three; a run that was killed evaluates the same models and keeps the same one."""

    def validated_trainer(scores: list[float], on_batch: OnBatch | None = None) -> Trainer:
        values = iter(scores)
        torch.manual_seed(0)
        run = toy_trainer(shards, tmp_path / "run", on_batch)
        run.validator = Validator(
            lambda model: {"a": next(values), "b": torch.rand(()).item() * 0}, best_by=("a", "b"), every=4
        )
        return run

    with pytest.raises(Killed):
        validated_trainer([1.0, 3.0], kill_at_batch(9)).fit()
    best_model = (tmp_path / "run/best/model.pt").read_bytes()
    summary = validated_trainer([2.0]).fit()  # resumes from step 8 and its best score
    assert summary["best"] == {"step": 8, "value": 3.0, "a": 3.0, "b": 0.0}
    assert json.loads((tmp_path / "run/best.json").read_text()) == summary["best"]
    assert (tmp_path / "run/best/model.pt").read_bytes() == best_model
    assert best_model != (tmp_path / "run/model/model.pt").read_bytes()
    scores = [record for record in untimed_records(tmp_path / "run") if "val_a" in record]
    assert [(record["step"], record["val_a"]) for record in scores] == [(4, 1.0), (8, 3.0), (12, 2.0)]
    # The evaluation draws random numbers, which does not change training.
    toy_trainer(shards, tmp_path / "not validated").fit()
    assert same_tensors(read_weights(tmp_path / "run"), read_weights(tmp_path / "not validated"))


def test_a_validation_that_fails_loses_no_step_and_is_repeated_by_the_next_launch(shards, tmp_path) -> None:
    def run(evaluate: Callable[..., dict[str, float]]) -> Trainer:
        run = toy_trainer(shards, tmp_path / "run")
        run.validator = Validator(evaluate, ("a",), every=6)
        return run

    def evaluator(*scores: float) -> Callable[..., dict[str, float]]:
        """Return these scores in turn, then fail after drawing a random number."""
        remaining = list(scores)

        def evaluate(model: object) -> dict[str, float]:
            torch.rand(3)
            if not remaining:
                raise FileNotFoundError("no validation pictures")
            return {"a": remaining.pop(0)}

        return evaluate

    with pytest.raises(FileNotFoundError, match="no validation pictures"):
        run(evaluator()).fit()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-000006"
    with pytest.raises(FileNotFoundError, match="no validation pictures"):  # at the last step
        run(evaluator(3.0)).fit()
    assert run(evaluator(2.0)).fit()["best"]["step"] == 6
    scores = [(r["step"], r["val_a"]) for r in untimed_records(tmp_path / "run") if "val_a" in r]
    assert scores == [(6, 3.0), (12, 2.0)]
    toy_trainer(shards, tmp_path / "not validated").fit()
    assert same_tensors(read_weights(tmp_path / "run"), read_weights(tmp_path / "not validated"))


@pytest.mark.parametrize(
    ("changed", "best"), [({"k": 2}, {"step": 12, "a": 1.0}), ({"every": 3}, {"step": 8, "a": 3.0})]
)
def test_scores_under_other_settings_are_not_compared(shards, tmp_path, changed, best) -> None:
    """A finished run is continued with other validation settings: its last model is validated again, as the first."""

    def run(scores: list[float], validation: dict, may_change: bool = False) -> Trainer:
        values = iter(scores)
        trainer = toy_trainer(shards, tmp_path, may_change=may_change, validation=validation)
        trainer.validator = Validator(lambda model: {"a": next(values)}, ("a",), every=4)
        return trainer

    settings = {"annotations": "val.json", "every": 4, "k": 1}
    run([1.0, 3.0, 2.0], settings).fit()
    with pytest.raises(ValueError, match="add --continue to go on from its step 12"):
        run([], settings | changed).fit()
    summary = run([1.0], settings | changed, may_change=True).fit()
    assert {name: summary["best"][name] for name in best} == best and summary["steps"] == 12


def test_validation_is_due_at_intervals_and_at_the_last_step_once() -> None:
    validator = Validator(lambda model: {}, (), every=4)
    due = [step for step in range(1, 11) if validator.is_due(TrainState(step=step, steps=10))]
    assert due == [4, 8, 10]
    assert not validator.is_due(TrainState(step=8, steps=10, validated_step=8))


def test_a_validation_is_described_in_one_line() -> None:
    state = TrainState(step=8, best={"step": 8, "value": 3.0})
    line = describe_validation(state, {"CIDEr": 123.456})
    assert line == "step 8 on the validation set: CIDEr 123.5: the best so far"
    state.step = 9
    assert describe_validation(state, {"a": 1.0}).endswith("a 1: no better than before")
