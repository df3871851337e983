"""`capfilt demo`: the whole of CapFilt on the embedded corpus, as the commands that a user would type.

    draw the corpus, serve it over HTTP
    -> capfilt download                        noisy pairs, as shards
    -> capfilt pretrain                        the first model, on the noisy pairs                row "noisy"
    -> capfilt finetune caption | retrieval    captioner and filter, on the small clean set
    -> capfilt caption, capfilt filter         synthetic captions; the texts of both kinds that pass the filter
    -> capfilt pretrain                        a new model on these texts, from scratch           row "bootstrapped"
    -> capfilt finetune caption | retrieval    every model, for its scores; with `rounds`, for the next round
    -> capfilt evaluate                        on held-out clean scenes, with and without finetuning
    -> tables, sample pictures, summary.json, report.html

Every row trains for the same number of steps from the same image encoder, with the same share of human pairs in each
batch. With other shares, a row could win by its human pairs. "human_only" is the control without any web text, and
"oracle" trains on the texts that are right by the truth, the bound of what a filter can reach.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from blipcore.device import count_cores
from blipcore.io.writing import write_json
from capfilt.bootstrap.rounds import link_models
from capfilt.demo import tables
from capfilt.demo.corpus import CorpusConfig, url_table, write_corpus
from capfilt.demo.filter_grades import write_oracle
from capfilt.demo.paper import table_commands, variants
from capfilt.demo.plan import (
    BOOTSTRAPPED,
    CAPTIONER_ONLY,
    FILTER_ONLY,
    HUMAN_ONLY,
    NOISY,
    ORACLE,
    DemoConfig,
    DemoPlan,
    round_row,
)
from capfilt.demo.server import CorpusServer
from capfilt.demo.summary import summarise
from capfilt.engine.commands import Command, CommandRunner, PlannedCommand, claim_folder
from capfilt.report.stage import ReportConfig, write_report
from capfilt.shards.tables import write_table

HUMAN_CAPTIONS = 5  # per human picture, as in COCO
MOST_SLOTS = 4  # commands at a time: each takes 1 GB, and small models gain little from a second thread


def run_demo(config: DemoConfig, console: Console | None = None) -> dict[str, Any]:
    """Run or resume the demo in `config.out`; return the content of `summary.json`."""
    # Outside a terminal, the widest table needs 120 columns.
    console = console or Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
    return Demo(config, console).run()


class Demo:
    """The files and commands of a demo run."""

    def __init__(self, config: DemoConfig, console: Console) -> None:
        self.config, self.console, self.plan = config, console, DemoPlan(config)
        self.runner = CommandRunner(config.out / "logs")
        self.printed: set[Command] = set()
        self.slots = min(MOST_SLOTS, count_cores())
        rounds = [round_row(number) for number in range(1, config.rounds + 1)]
        self.others = [] if config.quick else [HUMAN_ONLY]
        if config.rows == "all":
            self.others += [FILTER_ONLY, CAPTIONER_ONLY, ORACLE]
        self.rows = [NOISY, *rounds, *self.others]
        self.table_rows = [variant.row for variant in variants(config.table) if variant.row not in self.rows]

    def run(self) -> dict[str, Any]:
        """Run the remaining commands; print the tables, write the summary and the report."""
        # Later rounds, rows and tables can be added to a finished demo.
        free = ("out", "rounds", "rows", "table")
        settings = {name: value for name, value in asdict(self.config).items() if name not in free}
        with claim_folder(self.config.out, "demo.json", settings | {"recipe": asdict(self.plan.recipe)}, "demo"):
            return self._run()

    def _run(self) -> dict[str, Any]:
        start = time.monotonic()
        self.print_heading("1  A noisy web: draw the corpus, serve it, download it")
        self.download()
        self.print_heading("2  Pre-train on the noisy pairs, finetune captioner and filter, write and filter captions")
        self.run_commands(self.first_commands())
        if ORACLE in self.rows:
            write_oracle(self.plan.filtered(BOOTSTRAPPED), self.plan.corpus, self.plan.filtered(ORACLE))
        self.print_heading("3  Pre-train new models on the result, from scratch; finetune and evaluate all models")
        self.run_commands(self.further_commands())
        summary = summarise(self.plan, self.runner, [*self.rows, *self.table_rows])
        summary["seconds"] = round(time.monotonic() - start)
        write_json(self.config.out / "summary.json", summary)
        self.publish(summary)
        tables.print_tables(self.console, summary, self.config.out)
        if self.config.quick:
            self.console.print("This was a quick run of a few training steps: its scores mean nothing.")
        tables.save_svg(summary, self.config.out)
        self.report()
        return summary

    def first_commands(self) -> list[PlannedCommand]:
        """Return the commands up to the filtered sets of round 1; the control trains beside them."""
        plan = self.plan
        captioner, retriever = plan.finetune(NOISY)
        commands = [plan.pretrain(NOISY, plan.data), plan.finetune_filter(NOISY), captioner]
        commands += [plan.caption(1), plan.filter_round(1)]
        filter_run = plan.filter_run(NOISY)
        if FILTER_ONLY in self.rows:
            commands.append(plan.filter(FILTER_ONLY, filter_run, ["web"], threshold=0.5))
        if CAPTIONER_ONLY in self.rows:
            commands.append(plan.filter(CAPTIONER_ONLY, filter_run, ["web", "captioner"], threshold=0.0))
        if HUMAN_ONLY in self.rows:
            commands.append(plan.pretrain(HUMAN_ONLY, None))
        return [*commands, retriever]

    def further_commands(self) -> list[PlannedCommand]:
        """Return the other commands; those that others wait for come first."""
        plan, numbers = self.plan, range(1, self.config.rounds + 1)
        commands = [command for number in numbers for command in plan.round(number)]
        commands += [plan.judge_with_first_filter(number) for number in numbers if number > 1]
        for row in self.others:
            dataset = None if row == HUMAN_ONLY else plan.filtered(row)
            commands += plan.row(row, dataset)
        commands += [command for table in self.config.table for command in table_commands(plan, table)]
        commands += [command for row in (*self.rows, *self.table_rows) for command in plan.evaluate(row)]
        if self.config.rounds > 1:
            commands += [plan.validate(round_row(number)) for number in (0, *numbers)]
        return commands

    def download(self) -> None:
        """Write the corpus, serve it on localhost and download it."""
        recipe, plan = self.plan.recipe, self.plan
        sizes = {name: getattr(recipe, name) for name in ("web", "human", "validation", "test")}
        corpus = CorpusConfig(seed=self.config.seed, human_captions=HUMAN_CAPTIONS, lang=self.config.lang, **sizes)
        counts = write_corpus(corpus, plan.corpus)
        self.console.print("drew " + ", ".join(f"{number:,} {part}" for part, number in counts.items()) + " pictures")
        with CorpusServer(plan.corpus / "www", self.port()) as server:
            urls = self.config.out / "urls.parquet"
            if not urls.is_file():  # a resumed demo keeps the URLs that its tables hold
                write_table(urls, url_table(plan.corpus, server.url))
            self.run_commands([plan.download()])

    def port(self) -> int:
        """Return the port in the stored URLs, which a resumed download fetches, or 0 for any free port."""
        urls = self.config.out / "urls.parquet"
        if urls.is_file():
            return int(pq.read_table(urls)["url"][0].as_py().split(":")[2].split("/")[0])
        return 0

    def run_commands(self, commands: Sequence[PlannedCommand]) -> None:
        """Run commands, several at a time, each with an equal share of the cores. Raises CommandFailedError."""
        for planned in commands:
            if self.runner.summary(planned.command) is not None and planned.command not in self.printed:
                self.console.print(f"[dim]done before:[/] {planned.command}", soft_wrap=True)
        threads = str(max(1, count_cores() // self.slots))
        environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
        self.runner.run_plan(commands, self.slots, environment, self.print_start, self.print_end)

    def print_start(self, command: Command) -> None:
        self.printed.add(command)
        self.console.print(f"[bold]$[/] {command}", soft_wrap=True)

    def print_end(self, command: Command, seconds: float) -> None:
        self.console.print(f"[dim]{command.name}: {seconds:.0f} s[/]")

    def print_heading(self, text: str) -> None:
        self.console.rule(f"[bold]{text}", align="left")

    def publish(self, summary: dict[str, Any]) -> None:
        """Link the models of the best round in `OUT/best`, with the filter that chose its texts."""
        row = round_row(summary.get("best_round", 1))
        before = round_row(max(0, summary.get("best_round", 1) - 1))
        runs = {"model": self.plan.runs / row, "captioner": self.plan.captioner(row)}
        runs |= {"retrieval": self.plan.retriever(row), "filter": self.plan.filter_run(before)}
        link_models(self.config.out / "best", {name: str(run / "model") for name, run in runs.items()})

    def report(self) -> None:
        """Write report.html about the filtered sets."""
        sets = [str(self.plan.filtered(row)) for row in self.rows if self.plan.filtered(row).is_dir() and row != ORACLE]
        page = self.config.out / "report.html"
        write_report(ReportConfig(sets[0], compare=sets[1:], out=str(page)))
        self.console.print(f"[bold]Report[/] {page}  open it in a browser: counts, scores, thresholds, pictures")
