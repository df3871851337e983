"""The CapFilt loop as one command: rounds of caption, filter and retrain, from one YAML file.

    [download]                       URLs -> the shard set `data`
    round 0   pretrain               a model on the noisy and the human pairs (skipped if `init` gives a model)
    round r   filter, with captions  one pass over the pictures of `data` -> captions/round-r, filtered/round-r; the
                                     filter judges the web texts and the captions of all rounds so far
              filter                 from round 2 on, the filter of round 1 judges the new captions too
              report                 round r compared with the earlier rounds
              pretrain               a new model, from scratch, on filtered/round-r and the human pairs
    each round evaluate              its model without finetuning, if `tests` are given
              finetune               captioner and filter from its model, on the human pairs: those of the next round
              evaluate               the two finetuned models, as in the paper

The loop ends early if the held-out score of a round has not risen beyond its interval. `out/best` holds links to the
models of the best round, which need not be the last.

Each step is a command that a user could type. It runs in its own process, with its settings in `out/configs` and its
log and summary in `out/logs`. A step that has a summary is done, so the same command resumes the loop.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from blipcore.io.writing import write_json, write_text
from capfilt.bootstrap.gauges import gauge_texts, rare_words
from capfilt.bootstrap.plan import (
    COMMAND_SECTIONS,
    TESTS,
    BootstrapConfig,
    Step,
    captions_name,
    chosen_by,
    filtered_folder,
    finetuned_model,
    missing_files,
    plan,
    round_model,
    scores_file,
    section_settings,
    settings_file,
)
from capfilt.bootstrap.rounds import Scores, best_round, describe_rounds, has_stopped_rising, link_models, read_scores
from capfilt.config import to_dict
from capfilt.engine.commands import CommandRunner, claim_folder


def bootstrap(config: BootstrapConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the remaining steps of the loop; return the scores and gauges of each round, and the best round."""
    out, console = Path(config.out), console or Console(stderr=True, highlight=False)
    runner, steps = CommandRunner(config.logs), plan(config)
    missing = missing_files(config)
    if missing:
        raise FileNotFoundError(f"Some input files do not exist: {', '.join(missing)}.")
    start = time.monotonic()
    _require_accumulation(config)
    with claim_folder(out, "bootstrap.json", _recorded(config), "bootstrap"):
        for section in COMMAND_SECTIONS:
            settings = yaml.safe_dump(section_settings(config, section), sort_keys=False, allow_unicode=True)
            write_text(settings_file(config, section), settings)
        last, stopped = 0, False
        with StepTable(console, runner, steps) as table:
            while last <= config.rounds and not stopped:
                for step in steps:
                    if step.round == last:
                        table.start(step)
                        runner.run(step.command)
                        table.finish(step)
                stopped = config.stop and last < config.rounds and has_stopped_rising(_held_out(config, last))
                last += 1
        last -= 1
        held_out = _held_out(config, last)
        best = best_round(held_out) if held_out else last
        publish_round(config, best)
    if stopped:
        console.print(f"Stopped after round {last}: its held-out score has not risen beyond its interval.")
    summary = {f"round-{number}": summarise_round(config, runner, number) for number in range(last + 1)}
    for number, row in enumerate(describe_rounds(held_out)):
        summary[f"round-{number}"] |= row
    for line in round_lines(summary):
        console.print(line)
    report = str(out / f"round-{last}" / "report.html")
    finish = {"best": f"round-{best}", "chosen_by": chosen_by(config), "stopped_early": stopped, "report": report}
    return {**summary, **finish, "seconds": round(time.monotonic() - start)}


def _recorded(config: BootstrapConfig) -> dict[str, Any]:
    """Return the settings that a run in the same folder must repeat. Folders of earlier versions lack `accumulate`."""
    free = ("out", "rounds", "validation", "frozen_filter", "stop")
    return to_dict(config, without=free if config.accumulate else (*free, "accumulate"))


def _require_accumulation(config: BootstrapConfig) -> None:
    """Raise ValueError for the folder of an earlier version, whose rounds filter their own captions alone."""
    marker = Path(config.out) / "bootstrap.json"
    if config.accumulate and marker.is_file() and "accumulate" not in json.loads(marker.read_text(encoding="utf-8")):
        raise ValueError(
            f"{config.out} holds a bootstrap whose rounds filter their own captions alone, as in earlier versions; set "
            "accumulate: false to continue it, or give another out."
        )


def _held_out(config: BootstrapConfig, last: int) -> list[Scores]:
    """Return the held-out scores of the finetuned models of rounds 0 to `last`; none without tests."""
    test = chosen_by(config)
    return [read_scores(scores_file(config, number, test)) for number in range(last + 1)] if test else []


def publish_round(config: BootstrapConfig, number: int) -> None:
    """Link the models of a round in `out/best`: model, captioner and filter."""
    targets = {"model": round_model(config, number)}
    targets |= {role: finetuned_model(config, number, role) for role in ("captioner", "filter")}
    link_models(Path(config.out) / "best", targets)
    write_json(Path(config.out) / "best" / "best.json", {"round": number, **targets})


def summarise_round(config: BootstrapConfig, runner: CommandRunner, number: int) -> dict[str, Any]:
    """Return the model of a round, its scores with and without finetuning, and the gauges of its texts."""
    tests = [test for test in TESTS if test in config.tests]
    row: dict[str, Any] = {
        "model": round_model(config, number),
        "texts_kept": (runner.named_summary(f"{number}-filter") or {}).get("kept"),
        "finetuned": {test: runner.named_summary(f"{number}-evaluate-finetuned-{test}") or {} for test in tests},
    }
    row |= {test: runner.named_summary(f"{number}-evaluate-{test}") or {} for test in tests}
    if number:
        filtered, source = filtered_folder(config, number), captions_name(number)
        row["gauges"] = gauge_texts(filtered, source, rare_words(human_texts(config.human)))
        frozen = filtered.with_name(f"{source}-frozen")
        if frozen.is_dir():
            row["gauges"]["kept_share_by_first_filter"] = gauge_texts(frozen, source, set())["kept_share_captions"]
        why = (runner.named_summary(f"{number}-filter") or {}).get("why")
        row["gauges"] |= {"threshold": why} if why else {}  # with labels, its precision and recall
    return row


def human_texts(paths: Sequence[str]) -> Iterator[str]:
    """Iterate over the human captions."""
    from blipcore.data.shard_datasets import open_dataset

    for path in paths:
        dataset = open_dataset(path)
        for shard in range(len(dataset.counts)):
            for entry in dataset.load(shard):
                yield from entry.texts


def round_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line per round: its held-out score, the rise with its interval, and the gauges."""
    for name, row in summary.items():
        parts = [f"held-out {row['held_out']:.1f}"] if "held_out" in row else []
        if "rise" in row:
            parts.append("rise {value:+.1f} ({low:+.1f} to {high:+.1f})".format(**row["rise"]))
        gauges = {gauge: value for gauge, value in row.get("gauges", {}).items() if isinstance(value, float | int)}
        parts += [f"{gauge.replace('_', ' ')} {value:,.3g}" for gauge, value in gauges.items()]
        yield f"{name}: {', '.join(parts) or 'no held-out score'}"


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
