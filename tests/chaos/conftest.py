"""Options of the chaos suite, and its table after the tests."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

RESULTS = pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--minutes", type=float, default=10.0, help="minutes of random kills")
    group.addoption("--kills", type=int, default=1_000_000, help="random kills at most")
    group.addoption("--seed", type=int, default=0, help="of the choice of kills and faults")
    group.addoption("--only", default="", help="kill only commands that start with this")
    group.addoption("--report", type=Path, help="JSON file for the tries")


@pytest.fixture(scope="session")
def chaos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    from chaos_runner import open_chaos

    with open_chaos(tmp_path_factory.mktemp("chaos"), request.config.getoption("--seed", 0)) as chaos:
        request.config.stash[RESULTS] = chaos.results
        yield chaos


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    from chaos_runner import ROOT, table

    results = config.stash.get(RESULTS, {})
    if not results:
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    seed = config.getoption("--seed", 0)
    terminalreporter.line(f"\n{datetime.date.today()}, commit {commit.strip() or 'unknown'}, seed {seed}")
    for line in table(results):
        terminalreporter.line(line)
