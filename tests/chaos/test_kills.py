"""Commands that are killed at random moments and run again leave the files of an uninterrupted run, nothing else."""

from __future__ import annotations

import json
import time

import pytest
from chaos_runner import Chaos, kill_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]


def test_kills_at_random_moments(chaos: Chaos, request: pytest.FixtureRequest) -> None:
    options = request.config
    deadline = time.monotonic() + 60 * options.getoption("--minutes", 10.0)
    report = options.getoption("--report", None)
    for _ in kill_until(chaos, deadline, options.getoption("--kills", 1_000_000), options.getoption("--only", "")):
        if report:  # after each try, so that a run that is ended early counts
            report.write_text(json.dumps({name: vars(result) for name, result in chaos.results.items()}, indent=1))
    problems = [f"{name}: {problem}" for name, result in chaos.results.items() for problem in result.problems]
    assert sum(sum(result.kills.values()) for result in chaos.results.values()) > 0
    assert problems == []
