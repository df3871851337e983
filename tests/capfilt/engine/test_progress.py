"""Progress goes to stderr: plain lines without a terminal, nothing if it is disabled."""

from __future__ import annotations

import pytest

from capfilt.engine import progress
from capfilt.engine.progress import ProgressDisplay


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Replace the time by a clock that the test moves."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_rate_and_eta_count_this_run_only(clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("caption", 10, done=4) as display:
        clock.now += 5
        display.advance(1, pictures=50)  # too early for another line
        clock.now += 15
        display.advance(1, pictures=50)
        assert capsys.readouterr().err == "caption: 6 of 10 shards, 5.0 pictures/s, 0:00:40 left\n"
        display.print("shard 00003 failed: why")
        display.advance(4)
    assert capsys.readouterr() == ("", "shard 00003 failed: why\ncaption: 10 of 10 shards, 5.0 pictures/s\n")


def test_the_cost_of_this_run_is_shown_with_its_estimate(clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("score", 6, done=1) as display:
        clock.now += 20
        display.advance(1, dollars=1.5)
        assert "score: 2 of 6 shards, $1.50 spent, about $7.50 in all, 0:01:20 left\n" in capsys.readouterr().err
        display.advance(4, dollars=2)
    assert capsys.readouterr().err == "score: 6 of 6 shards, $3.50 spent\n"


def test_nothing_is_printed_without_work_or_if_disabled(clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("caption", 10, done=10):
        pass
    with ProgressDisplay("caption", 10, shown=False) as display:
        clock.now += 60
        display.advance(10)
        display.print("hidden")
    assert capsys.readouterr() == ("", "")
