"""The loop as one command: rounds of caption -> filter -> rewrite -> retrain, from one YAML.

    [download]                       URLs -> the shard set `data`
    round 0   pretrain               a model on the noisy pairs and the human ones (or `init`, and no training)
    round r   finetune captioner, finetune filter       both from the model of round r - 1, on the human pairs
              filter, and caption    every picture of `data`, in one pass -> captions/round-r, filtered/round-r
              report                 round r beside the rounds before it
              pretrain               a new model, from scratch, on filtered/round-r and the human pairs
    after each round's model         evaluate, where there are test sets

Every step is the command that a user would type, in a process of its own, its settings in a file under `out/configs`,
its words and its summary under `out/logs`. A step that has a summary is done: launched again, the loop goes on.
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

from capfilt.bootstrap_plan import (
    SECTIONS,
    TESTS,
    BootstrapConfig,
    Part,
    _settings,
    _settings_file,
    missing,
    model_of,
    plan,
)
from capfilt.config import to_dict
from capfilt.engine.commands import Steps, claim
from capfilt.shards.format import write_text


def bootstrap(config: BootstrapConfig, console: Console | None = None) -> dict[str, Any]:
    """Run what is left of the loop; returns the scores of every round's model and where things lie."""
    out, console = Path(config.out), console or Console(stderr=True, highlight=False)
    steps, parts = Steps(out / "logs"), plan(config)
    if lacking := missing(config):
        raise FileNotFoundError(f"The loop needs what is not there: {', '.join(lacking)}.")
    claim(out, "bootstrap.json", to_dict(config, without=("out", "rounds")), "bootstrap")
    for section in SECTIONS:
        settings = yaml.safe_dump(_settings(config, section), sort_keys=False, allow_unicode=True)
        write_text(_settings_file(config, section), settings)
    started = time.monotonic()
    with Overview(console, steps, parts) as overview:
        for part in parts:
            overview.start(part)
            steps.run(part.step)
            overview.finish(part)
    summaries = {part.step.name: steps.summary(part.step) or {} for part in parts}
    rounds = {}
    for number in range(config.rounds + 1):
        kept = summaries.get(f"{number}-filter", {}).get("kept")
        scores = {test: summaries[f"{number}-evaluate-{test}"] for test in TESTS if test in config.tests}
        rounds[f"round-{number}"] = {"model": model_of(config, number), "texts_kept": kept, **scores}
    report = str(out / f"round-{config.rounds}" / "report.html")
    return {**rounds, "report": report, "seconds": round(time.monotonic() - started)}


# --- what a person sees ---------------------------------------------------------------------------------------------


def dry_run(config: BootstrapConfig, console: Console) -> dict[str, Any]:
    """Print what `bootstrap` would run, with hours from the rates that steps done before in `out` have shown."""
    steps, parts = Steps(Path(config.out) / "logs"), plan(config)
    rates = {}
    for part in parts:
        if rate := (steps.summary(part.step) or {}).get(f"{part.unit}_per_second"):
            rates[part.kind] = rate
    left, unknown = 0.0, set()
    for part in parts:
        rate, told = rates.get(part.kind), ""
        if steps.summary(part.step) is not None:
            told = "done"
        elif part.unit and not (part.amount and rate):
            told = "? hours"
            unknown.add(part.kind)
        elif part.unit:
            hours = part.amount / rate / 3600
            told, left = f"{hours:.2g} hours", left + hours
        amount = f"{part.amount:,} {part.unit.replace('_', ' ')}" if part.amount else ""
        console.print(f"[bold]{part.step.name:24}[/]{amount:26}{told}")
        console.print(f"  [dim]{escape(str(part.step))}[/]", soft_wrap=True)
    if unknown:
        console.print(f"Hours are known once a step of its kind has run: {', '.join(sorted(unknown))} not yet.")
    if lacking := missing(config):
        console.print(f"Not there yet: {escape(', '.join(lacking))}.")
    hours = None if unknown and not left else round(left, 6)
    return {"steps": len(parts), "hours_left": hours, "unknown": sorted(unknown), "missing": lacking}


class Overview:
    """Which step is running, what it last said, what is done and left: live on a terminal, else a line a step."""

    def __init__(self, console: Console, steps: Steps, parts: Sequence[Part]) -> None:
        self.console, self.steps, self.parts = console, steps, parts
        self.took = {part.step.name: 0.0 for part in parts}
        self.now: Part | None = None
        self.began = 0.0
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=2)

    def __enter__(self) -> Overview:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def start(self, part: Part) -> None:
        self.now, self.began = part, time.monotonic()
        if not self.console.is_terminal:
            before = self.steps.summary(part.step) is not None
            self.console.print(f"{'done before:' if before else '$'} {escape(str(part.step))}", soft_wrap=True)

    def finish(self, part: Part) -> None:
        self.took[part.step.name], self.now = time.monotonic() - self.began, None

    def table(self) -> Table:
        """A row a step; the running one shows the last line of its log: its rate, and what is left."""
        table = Table("step", "", "seconds", "says", expand=True)
        for part in self.parts:
            name = part.step.name
            if part is self.now:
                took, said = time.monotonic() - self.began, self.steps.last_words(part.step)
                table.add_row(f"[bold]{name}", "running", f"{took:.0f}", escape(said + left(part, took, said)))
            elif self.steps.summary(part.step) is not None:
                table.add_row(name, "[green]done", f"{self.took[name]:.0f}" if self.took[name] else "before", "")
            else:
                table.add_row(f"[dim]{name}", "[dim]waits", "", "")
        return table


def left(part: Part, took: float, said: str) -> str:
    """The time left, where the words of a step tell its rate and not that: before its first shard is done."""
    rate = re.search(r"([\d.]+) pictures/s", said)
    if not (rate and part.amount and part.unit == "pictures") or " left" in said or not float(rate[1]):
        return ""
    return f", {timedelta(seconds=max(0, round(part.amount / float(rate[1]) - took)))} left"
