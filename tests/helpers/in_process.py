"""Runs the commands of a job in this process, instead of a process for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.engine.commands import Command, CommandRunner, PlannedCommand

Work = Callable[[Command], dict[str, Any]]


def invoke_command(command: Command) -> dict[str, Any]:
    """Run a command; return its summary."""
    result = CliRunner().invoke(app, [*command.arguments, "--json"])
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return json.loads(result.stdout.splitlines()[-1])


def run_in_process(monkeypatch: pytest.MonkeyPatch, work: Work = invoke_command) -> list[str]:
    """Let jobs call `work` for each command that has no summary; return a list to which their names are added."""
    names: list[str] = []

    def run_plan(
        self: CommandRunner, commands: Sequence[PlannedCommand], slots: int, environment: Any, started: Any
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for planned in commands:
            if self.summary(planned.command) is None:
                assert all(self.named_summary(name) for name in planned.needs)
                started(planned.command)
                names.append(planned.command.name)
                summary = json.dumps(work(planned.command))
                (self.folder / f"{planned.command.name}.json").write_text(summary)

    monkeypatch.setattr(CommandRunner, "run_plan", run_plan)
    return names
