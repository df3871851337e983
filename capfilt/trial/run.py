"""`capfilt trial`: trains small models on each selection, and says whether one is better than another.

    each set, each seed   pretrain                a new model, with equal steps and the same human pairs
                          finetune                on the human pairs, if `finetune_steps` is given
                          evaluate                the score of each held-out picture
    then                  intervals.py            the difference of each set from the first, with its interval
                          plot.py                 the plot for terminal, SVG and page

Each step is a command that a user could type, with its log and summary in `out/logs`. A step that has a summary is
done, so the same command resumes a trial, and another number of `seeds` adds runs to it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from blipcore.device import count_cores
from blipcore.io.writing import write_json, write_text
from capfilt.config import to_dict
from capfilt.engine.commands import Command, CommandRunner, PlannedCommand, claim_folder
from capfilt.trial.plan import SECTIONS, TrialConfig, TrialStep, check_inputs, missing_files, plan, settings_file
from capfilt.trial.plot import page, svg, terminal_lines
from capfilt.trial.result import TrialResult, compare

MARKER = "trial.json"


def run_trial(config: TrialConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the remaining commands of a trial; write and return its result."""
    console = console or Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
    commands, start = _commands(config), time.monotonic()
    check_inputs(config)
    runner, out = CommandRunner(config.logs), Path(config.out)
    recorded = to_dict(config, without=("out", "seeds", "parallel"))
    with claim_folder(out, MARKER, recorded, "trial"):
        for section in SECTIONS:
            settings = yaml.safe_dump(getattr(config, section), sort_keys=False, allow_unicode=True)
            write_text(settings_file(config, section), settings)
        for planned in commands:
            if runner.summary(planned.command) is not None:
                console.print(f"[dim]done before:[/] {escape(str(planned.command))}", soft_wrap=True)

        def print_start(command: Command) -> None:
            console.print(f"[bold]$[/] {escape(str(command))}", soft_wrap=True)

        runner.run_plan(commands, config.parallel, _environment(config), started=print_start)
        result = compare(config)
        files = _write(result, out)
    for line in (*terminal_lines(result.comparisons), *result.sentences):
        console.print(escape(line), soft_wrap=True)
    return {"stage": "trial", **result.to_dict(), **files, "seconds": round(time.monotonic() - start)}


def _write(result: TrialResult, out: Path) -> dict[str, str]:
    """Write the result as JSON, SVG and page; return their paths."""
    write_json(out / "result.json", result.to_dict())
    write_text(out / "result.svg", svg(result.comparisons))
    write_text(out / "result.html", page(result))
    return {"plot": str(out / "result.svg"), "page": str(out / "result.html")}


def _commands(config: TrialConfig) -> list[PlannedCommand]:
    """Return all commands; each waits for those of its run before it."""
    commands = []
    for _, steps in plan(config):
        names = [step.command.name for step in steps]
        commands += [PlannedCommand(step.command, tuple(names[:number])) for number, step in enumerate(steps)]
    return commands


def _environment(config: TrialConfig) -> dict[str, str]:
    """Return equal shares of the cores for commands that run at the same time."""
    if config.parallel == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, count_cores() // config.parallel)), "OMP_WAIT_POLICY": "passive"}


def dry_run(config: TrialConfig, console: Console) -> dict[str, Any]:
    """Print the commands of a trial, with their hours at the rates of finished commands of the same kind."""
    runner, steps = CommandRunner(config.logs), [step for _, steps in plan(config) for step in steps]
    seconds: dict[str, float] = {}
    for step in steps:
        summary = runner.summary(step.command) or {}
        if step.images and summary.get("images_per_second"):
            seconds[step.kind] = step.images / summary["images_per_second"]
    total, unknown = 0.0, set()
    for step in steps:
        duration = _duration(step, runner, seconds)
        if duration == "? hours":
            unknown.add(step.kind)
        elif duration != "done":
            total += seconds.get(step.kind, 0.0) / 3600
        images = f"{step.images:,} images" if step.images else ""
        console.print(f"[bold]{escape(step.command.name):36}[/]{images:20}{duration}")
        console.print(f"  [dim]{escape(str(step.command))}[/]", soft_wrap=True)
    if unknown:
        console.print(f"Hours are unknown until a first run has ended: {', '.join(sorted(unknown))}.")
    missing = missing_files(config)
    if missing:
        console.print(f"Missing files: {escape(', '.join(missing))}.")
    hours = None if unknown else round(total / config.parallel, 3)
    return {"commands": len(steps), "hours_left": hours, "unknown": sorted(unknown), "missing": missing}


def _duration(step: TrialStep, runner: CommandRunner, seconds: dict[str, float]) -> str:
    if runner.summary(step.command) is not None:
        return "done"
    if not step.images:  # an evaluation, which is short beside a training run
        return ""
    return f"{seconds[step.kind] / 3600:.2g} hours" if step.kind in seconds else "? hours"
