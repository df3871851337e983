"""Signals during training: the run saves, exits and resumes."""

import os
import signal

import pytest
from toy_training import Brightness, read_weights, same_tensors, toy_trainer, untimed_records

from blipcore.train.signals import stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_exits(shards, tmp_path, number, capfd) -> None:
    def interrupt(task: Brightness, batch: dict) -> None:
        if len(task.batch_keys) == 7:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    toy_trainer(shards, tmp_path / "uninterrupted").fit()
    with pytest.raises(SystemExit) as exit_info:
        toy_trainer(shards, tmp_path / "stopped", interrupt).fit()
    assert exit_info.value.code == 128 + number and signal.getsignal(number) is handler
    assert "stopped and saved at step 7; run the same command again" in capfd.readouterr().err
    resumed = toy_trainer(shards, tmp_path / "stopped")
    resumed.fit()
    assert len(resumed.task.batch_keys) == 5
    assert same_tensors(read_weights(tmp_path / "uninterrupted"), read_weights(tmp_path / "stopped"))
    assert untimed_records(tmp_path / "uninterrupted") == untimed_records(tmp_path / "stopped")


def test_under_a_launcher_a_signal_may_arrive_twice(shards, tmp_path, monkeypatch) -> None:
    """A launcher forwards a signal that the process has also received directly."""

    def interrupt(task: Brightness, batch: dict) -> None:
        if len(task.batch_keys) == 7:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        toy_trainer(shards, tmp_path, interrupt).fit()
    assert (tmp_path / "checkpoints" / "step-000007").is_dir()


def test_without_a_launcher_a_second_signal_has_its_usual_effect(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    # A shell starts commands in the background with SIGINT ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGINT)
            assert received == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
