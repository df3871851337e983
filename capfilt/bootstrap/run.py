"""The CapFilt loop as one command: rounds of caption, filter and retrain, from one YAML file.

    [download]                       URLs -> the shard set `data`
    round 0   pretrain               a model on the noisy and the human pairs (skipped if `init` gives a model)
    round r   finetune               captioner and filter, both from the model of round r - 1, on the human pairs
              filter, with captions  one pass over the pictures of `data` -> captions/round-r, filtered/round-r
              report                 round r compared with the earlier rounds
              pretrain               a new model, from scratch, on filtered/round-r and the human pairs
    after each round                 evaluate its model, if `tests` are given

Each step is a command that a user could type. It runs in its own process, with its settings in `out/configs` and its
log and summary in `out/logs`. A step that has a summary is done, so the same command resumes the loop.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from blipcore.io.writing import write_text
from capfilt.bootstrap.plan import (
    COMMAND_SECTIONS,
    TESTS,
    BootstrapConfig,
    Step,
    missing_files,
    plan,
    round_model,
    section_settings,
    settings_file,
)
from capfilt.config import to_dict
from capfilt.engine.commands import CommandRunner, claim_folder


def bootstrap(config: BootstrapConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the remaining steps of the loop; return the scores of each round's model and the path of the report."""
    out, console = Path(config.out), console or Console(stderr=True, highlight=False)
    runner, steps = CommandRunner(config.logs), plan(config)
    missing = missing_files(config)
    if missing:
        raise FileNotFoundError(f"Some input files do not exist: {', '.join(missing)}.")
    start = time.monotonic()
    with claim_folder(out, "bootstrap.json", to_dict(config, without=("out", "rounds")), "bootstrap"):
        for section in COMMAND_SECTIONS:
            settings = yaml.safe_dump(section_settings(config, section), sort_keys=False, allow_unicode=True)
            write_text(settings_file(config, section), settings)
        with StepTable(console, runner, steps) as table:
            for step in steps:
                table.start(step)
                runner.run(step.command)
                table.finish(step)
    rounds = {}
    for number in range(config.rounds + 1):
        filtered = runner.named_summary(f"{number}-filter") or {}
        tests = [test for test in TESTS if test in config.tests]
        scores = {test: runner.named_summary(f"{number}-evaluate-{test}") or {} for test in tests}
        model = round_model(config, number)
        rounds[f"round-{number}"] = {"model": model, "texts_kept": filtered.get("kept"), **scores}
    report = str(out / f"round-{config.rounds}" / "report.html")
    return {**rounds, "report": report, "seconds": round(time.monotonic() - start)}


def dry_run(config: BootstrapConfig, console: Console) -> dict[str, Any]:
    """Print the steps of the loop. Hours are estimated from the rates of finished steps of the same kind."""
    runner, steps = CommandRunner(config.logs), plan(config)
    rates: dict[str, float] = {}
    for step in steps:
        rate = (runner.summary(step.command) or {}).get(f"{step.unit}_per_second")
        if rate:
            rates[step.kind] = rate
    total, unknown = 0.0, set()
    for step in steps:
        rate, duration = rates.get(step.kind), ""
        if runner.summary(step.command) is not None:
            duration = "done"
        elif step.unit and step.amount and rate:
            hours = step.amount / rate / 3600
            duration, total = f"{hours:.2g} hours", total + hours
        elif step.unit:
            duration = "? hours"
            unknown.add(step.kind)
        amount = f"{step.amount:,} {step.unit.replace('_', ' ')}" if step.amount else ""
        console.print(f"[bold]{step.command.name:24}[/]{amount:26}{duration}")
        console.print(f"  [dim]{escape(str(step.command))}[/]", soft_wrap=True)
    if unknown:
        console.print(f"Hours are unknown until a first step of the kind is done: {', '.join(sorted(unknown))}.")
    missing = missing_files(config)
    if missing:
        console.print(f"Missing files: {escape(', '.join(missing))}.")
    hours_left = None if unknown and not total else round(total, 6)
    return {"steps": len(steps), "hours_left": hours_left, "unknown": sorted(unknown), "missing": missing}


class StepTable:
    """A live table of the steps on a terminal; elsewhere one line per step."""

    def __init__(self, console: Console, runner: CommandRunner, steps: Sequence[Step]) -> None:
        self.console, self.runner, self.steps = console, runner, steps
        self.seconds = {step.command.name: 0.0 for step in steps}
        self.current: Step | None = None
        self.start_time = 0.0
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=2)

    def __enter__(self) -> StepTable:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def start(self, step: Step) -> None:
        self.current, self.start_time = step, time.monotonic()
        if not self.console.is_terminal:
            prefix = "$" if self.runner.summary(step.command) is None else "done before:"
            self.console.print(f"{prefix} {escape(str(step.command))}", soft_wrap=True)

    def finish(self, step: Step) -> None:
        self.seconds[step.command.name], self.current = time.monotonic() - self.start_time, None

    def render(self) -> Table:
        """Return the table: a row per step, with the last log line of the running one."""
        table = Table("step", "", "seconds", "last message", expand=True)
        for step in self.steps:
            name = step.command.name
            if step is self.current:
                seconds, message = time.monotonic() - self.start_time, self.runner.last_line(step.command)
                message += format_time_left(step, seconds, message)
                table.add_row(f"[bold]{name}", "running", f"{seconds:.0f}", escape(message))
            elif self.runner.summary(step.command) is not None:
                table.add_row(name, "[green]done", f"{self.seconds[name]:.0f}" if self.seconds[name] else "before", "")
            else:
                table.add_row(f"[dim]{name}", "[dim]waiting", "", "")
        return table


def format_time_left(step: Step, seconds: float, message: str) -> str:
    """Return the time left of a running step, if its log line gives a rate but no time left.

    A stage logs no time left before its first shard is done.
    """
    rate = re.search(r"([\d.]+) pictures/s", message)
    if not (rate and step.amount and step.unit == "pictures") or " left" in message or not float(rate[1]):
        return ""
    return f", {timedelta(seconds=max(0, round(step.amount / float(rate[1]) - seconds)))} left"
