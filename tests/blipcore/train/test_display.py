"""Progress on stderr: a live line on a terminal, plain lines elsewhere."""

import io
import sys

from toy_training import toy_trainer

from blipcore.train.display import format_duration, format_record


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_live_line(shards, tmp_path, monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    toy_trainer(shards, tmp_path).fit()
    last = terminal.getvalue().rsplit("step ", 1)[1]
    assert last.startswith("12/12") and "img/s" in last and "square" in last and "lr" in last


def test_elsewhere_each_record_is_a_line_on_stderr(shards, tmp_path, capfd) -> None:
    toy_trainer(shards, tmp_path).fit()
    out, err = capfd.readouterr()
    assert out == ""  # stdout is for the summary of the command
    memory, *records = err.splitlines()
    assert memory == "memory: 0.00 GB for weights, gradients and optimizer, besides activations"
    assert [line.split()[1] for line in records] == ["5/12", "10/12", "12/12"]


def test_a_record_as_text() -> None:
    record = {"step": 5, "loss": 2.31, "loss_itc": 1.2, "lr": 3e-4, "images_per_second": 512.3}
    record |= {"data_wait_share": 0.031, "memory_gb": 1.234, "seconds": 60.0}
    assert format_record(record) == "loss 2.310  itc 1.200  lr 3.0e-04  512 img/s  wait 3%  mem 1.2 GB"
    assert format_record({"step": 1, "lr": 1.0}) == "lr 1.0e+00"


def test_durations() -> None:
    assert [format_duration(seconds) for seconds in (0.4, 61, 3599.6, 7325)] == ["0:00", "1:01", "1:00:00", "2:02:05"]
