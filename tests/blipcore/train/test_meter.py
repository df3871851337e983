"""Losses and times of a log interval."""

import time

import pytest
import torch
from toy_training import toy_trainer, untimed_records

from blipcore.train.meter import Meter
from blipcore.train.state import TrainState


def test_logged_losses_are_means_over_the_interval(shards, tmp_path) -> None:
    run = toy_trainer(shards, tmp_path, accumulate=2, log_every=4)
    losses: list[float] = []
    forward = run.task.forward

    def recording_forward(batch, progress) -> dict:
        outputs = forward(batch, progress)
        losses.append(outputs["loss"].item())
        return outputs

    run.task.forward = recording_forward
    run.fit()
    expected = [sum(losses[start : start + 8]) / 8 for start in (0, 8, 16)]
    assert [record["loss"] for record in untimed_records(tmp_path)] == pytest.approx(expected, rel=1e-5)


def test_rates_are_of_the_interval(monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter, state = Meter(images_per_step=8, device="cpu"), TrainState(seconds=50.0, logged_seconds=50.0)
    meter.start(state.seconds)
    now, state.step, state.waited = 104.0, 2, 1.0
    record = meter.record(state, learning_rate=0.5)
    assert (record["images_per_second"], record["data_wait_share"], record["seconds"]) == (4.0, 0.25, 54.0)
    assert meter.seconds_per_step == 2.0 and record["lr"] == 0.5
    now, state.step = 106.0, 6
    record = meter.record(state, learning_rate=0.5)
    assert (record["images_per_second"], record["data_wait_share"]) == (16.0, 0.0)


def test_an_unfinished_interval_survives_a_checkpoint(monkeypatch) -> None:
    monkeypatch.setattr(time, "perf_counter", iter(range(1000)).__next__)
    losses = [{"loss": torch.tensor(value), "features": torch.zeros(3)} for value in (1.0, 2.0, 6.0)]
    first, second = Meter(4, "cpu"), Meter(4, "cpu")
    first.add(losses[:1])
    second.start(0.0)
    second.load_sums(first.saved_sums(), first.summed_steps)
    second.add(losses[1:])  # one step of two micro-batches
    record = second.record(TrainState(step=2), learning_rate=0.5)
    assert record["loss"] == 2.5 and "features" not in record


def test_an_interval_of_skipped_steps_repeats_the_losses_before(monkeypatch) -> None:
    monkeypatch.setattr(time, "perf_counter", iter(range(1000)).__next__)
    meter = Meter(4, "cpu")
    meter.start(0.0)
    record = meter.record(TrainState(step=2, losses={"loss": 7.0}), learning_rate=0.5)
    assert record["loss"] == 7.0
