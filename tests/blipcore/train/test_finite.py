"""Losses, gradients and weights that are not finite: the run stops or skips the step, and never saves them."""

import numpy as np
import pytest
import torch
from toy_training import Brightness, OnBatch, read_weights, toy_trainer, untimed_records

from blipcore.train import finite as finite_module
from blipcore.train.finite import FiniteCheck, NonFiniteLossError
from blipcore.train.state import TrainState


def spoil(*batch_numbers: int) -> OnBatch:
    """Make the targets of these batches NaN."""

    def on_batch(task: Brightness, batch: dict) -> None:
        if len(task.batch_keys) in batch_numbers:
            batch["numbers"].fill_(torch.nan)

    return on_batch


@pytest.mark.parametrize("check_every_step", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_pictures(shards, tmp_path, check_every_step) -> None:
    run = toy_trainer(shards, tmp_path, spoil(6))
    run.finite_check.check_every_step = check_every_step  # False on a GPU, which checks at the next log or save
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 5; the pictures of its batch: ") as error:
        run.fit()
    assert ", ".join(run.task.batch_keys[5]) in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    assert toy_trainer(shards, tmp_path).fit()["steps"] == 12  # resumes from the good checkpoint


def test_with_clipping_a_gradient_that_is_not_finite_stops_the_run(shards, tmp_path) -> None:
    run = toy_trainer(shards, tmp_path, clip=1.0)
    run.task.model[1].weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteLossError, match="step 0"):
        run.fit()


def test_steps_with_a_loss_that_is_not_finite_can_be_skipped(shards, tmp_path) -> None:
    run = toy_trainer(shards, tmp_path, spoil(2, 6), nonfinite="skip")
    summary = run.fit()
    assert summary["skipped_steps"] == 2 and summary["steps"] == 12
    assert all(tensor.isfinite().all() for tensor in read_weights(tmp_path).values())
    assert run.task.queue.isfinite().all()
    assert all(np.isfinite(record["loss"]) for record in untimed_records(tmp_path))


def test_steps_with_a_gradient_that_is_not_finite_can_be_skipped(shards, tmp_path) -> None:
    run = toy_trainer(shards, tmp_path, nonfinite="skip", steps=3)
    run.task.model[1].weight.register_hook(
        lambda gradient: gradient * (torch.nan if len(run.task.batch_keys) == 2 else 1)
    )
    assert run.fit()["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in read_weights(tmp_path).values())


def test_too_many_skipped_steps_in_a_row_stop_the_run(shards, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(finite_module, "MAX_SKIPPED", 5)
    run = toy_trainer(shards, tmp_path, spoil(2, 3, *range(6, 100)), nonfinite="skip")
    with pytest.raises(NonFiniteLossError, match="5 steps in a row, up to step 9, had a loss"):
        run.fit()


def test_weights_that_are_not_finite_are_not_saved(shards, tmp_path) -> None:
    """The loss of the step that spoils them is finite, so a check of losses does not find it."""
    run = toy_trainer(shards, tmp_path)
    run.task.model[1].weight.register_hook(
        lambda gradient: gradient * (torch.nan if len(run.task.batch_keys) == 8 else 1)
    )
    with pytest.raises(NonFiniteLossError, match="not finite after step 8"):
        run.fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


def test_checks_on_a_gpu_stay_pending_until_they_are_read() -> None:
    check, state = FiniteCheck("stop", "cuda"), TrainState()
    for step, finite in enumerate((True, False, True)):
        check.add(step, [f"picture {step}"], torch.tensor(finite))
        assert check.allows_update(state)
    with pytest.raises(NonFiniteLossError, match="not finite at step 1; the pictures of its batch: picture 1"):
        check.all_finite()
    assert check.all_finite()  # nothing is pending any more
