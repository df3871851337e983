"""`capfilt demo`: the whole of CapFilt on the embedded corpus, as the commands that a user would type.

    draw the corpus, serve it over HTTP
    -> capfilt download                        noisy pairs, as shards
    -> capfilt pretrain                        the first model, on the noisy pairs                row "noisy"
    -> capfilt finetune caption | retrieval    captioner and filter, on the small clean set
    -> capfilt caption, capfilt filter         synthetic captions; the texts of both kinds that pass the filter
    -> capfilt pretrain                        a new model on these texts, from scratch           row "bootstrapped"
    -> capfilt evaluate                        on held-out clean scenes
    -> tables, sample pictures, summary.json, report.html

Every row trains for the same number of steps from the same image encoder, with the same share of human pairs in each
batch. With other shares, a row could win by its human pairs. "human_only" is the control without any web text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from rich.console import Console

from blipcore.device import count_cores
from blipcore.io.writing import write_json
from capfilt.demo import grading, image_encoder, tables
from capfilt.demo.corpus import CorpusConfig, url_table, write_corpus
from capfilt.demo.server import CorpusServer
from capfilt.engine.commands import Command, CommandRunner, claim_folder
from capfilt.report.stage import ReportConfig, write_report
from capfilt.shards.tables import write_table

RECIPES = Path(__file__).parent / "recipes"
HUMAN_SHARE = 0.2  # of every pre-training batch, in every row
HUMAN_CAPTIONS = 5  # per human picture, as in COCO
RERANKED = 16  # candidates that ITM re-ranks, enough for recall at 10 among about 600 pictures
CAPTIONER = "captioner"
# Recipe -> section with the settings of its task.
TASK_SECTIONS = {"pretrain": "task", "captioner": "caption", "filter": "retrieval"}


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `capfilt demo`."""

    out: Path = Path("demo")
    scale: float = 1.0  # factor on the numbers of pictures and of training steps
    seed: int = 0  # of the corpus and the training runs
    rows: Literal["main", "all"] = "main"
    quick: bool = False  # a smoke run of two minutes; its scores mean nothing
    lang: Literal["en", "zh"] = "en"  # of the web and human texts

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1000:
            raise ValueError(f"scale must be above 0 and at most 1000, not {self.scale}.")


@dataclass(frozen=True)
class Recipe:
    """Numbers of pictures and steps.

    The other settings, in `recipes/`, were tuned on the validation pictures of corpus seed 100, which is in no table.
    """

    web: int = 12_000
    human: int = 1_000
    validation: int = 500
    test: int = 1_000
    pretrain_steps: int = 800
    captioner_steps: int = 800
    filter_steps: int = 400
    shard_size: int = 2_000

    @classmethod
    def from_config(cls, config: DemoConfig) -> Recipe:
        if config.quick:
            return cls(240, 80, 20, 40, pretrain_steps=12, captioner_steps=8, filter_steps=8, shard_size=60)
        base = cls()
        scaled = ("web", "human", "pretrain_steps", "captioner_steps", "filter_steps")
        return cls(**asdict(base) | {name: round(getattr(base, name) * config.scale) for name in scaled})


def run_demo(config: DemoConfig, console: Console | None = None) -> dict[str, Any]:
    """Run or resume the demo in `config.out`; return the content of `summary.json`."""
    # Outside a terminal, the widest table needs 120 columns.
    console = console or Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
    return Demo(config, console).run()


class Demo:
    """The files and commands of a demo run."""

    def __init__(self, config: DemoConfig, console: Console) -> None:
        self.config, self.console, self.recipe = config, console, Recipe.from_config(config)
        self.out = config.out
        self.corpus, self.data, self.runs = self.out / "corpus", self.out / "data", self.out / "runs"
        self.runner = CommandRunner(self.out / "logs")
        self.rows = ["noisy", "human_only", "bootstrapped"]
        if config.rows == "all":
            self.rows += ["filter_only", "captioner_only"]

    def run(self) -> dict[str, Any]:
        """Run the remaining commands; print the tables, write the summary and the report."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in ("out", "rows")}
        with claim_folder(self.out, "demo.json", settings, "demo"):
            return self._run()

    def _run(self) -> dict[str, Any]:
        start = time.monotonic()
        self.print_heading("1  A noisy web: draw the corpus, serve it, download it")
        self.download()
        self.print_heading("2  Pre-train on the noisy pairs (and, as a control, on the human pairs alone)")
        self.run_commands(self.pretrain("noisy", str(self.data)), self.pretrain("human_only", None))
        self.print_heading("3  Finetune captioner and filter from the noisy model, on the human pairs")
        self.run_commands(self.finetune("caption", CAPTIONER), self.finetune("retrieval", "filter"))
        self.print_heading("4  Caption every picture; keep the texts that match; rewrite the data set")
        self.run_commands(self.caption())
        for name in self.rows[2:]:
            self.run_commands(self.filter(name))
        self.print_heading("5  Pre-train a new model on the result, from scratch")
        self.run_in_pairs([self.pretrain(name, str(self.data / "filtered" / name)) for name in self.rows[2:]])
        self.print_heading("6  Evaluate on held-out clean scenes")
        self.run_in_pairs([command for name in self.rows for command in self.evaluate(name)])
        summary = self.summary() | {"seconds": round(time.monotonic() - start)}
        write_json(self.out / "summary.json", summary)
        tables.print_tables(self.console, summary, self.out)
        if self.config.quick:
            self.console.print("This was a quick run of a few training steps: its scores mean nothing.")
        tables.save_svg(summary, self.out)
        self.report()
        return summary

    # --- the commands (returned, not run; `download` also runs) ---

    def download(self) -> None:
        """Write the corpus, serve it on localhost and download it."""
        recipe = self.recipe
        sizes = {name: getattr(recipe, name) for name in ("web", "human", "validation", "test")}
        corpus = CorpusConfig(seed=self.config.seed, human_captions=HUMAN_CAPTIONS, lang=self.config.lang, **sizes)
        counts = write_corpus(corpus, self.corpus)
        self.console.print("drew " + ", ".join(f"{number:,} {part}" for part, number in counts.items()) + " pictures")
        with CorpusServer(self.corpus / "www", self.port()) as server:
            urls = self.out / "urls.parquet"
            if not urls.is_file():  # a resumed demo keeps the URLs that its tables hold
                write_table(urls, url_table(self.corpus, server.url))
            self.run_commands(self.fetch())

    def fetch(self) -> Command:
        arguments = ["download", str(self.out / "urls.parquet"), str(self.data), "--allow-private"]
        arguments += ["--shard-size", str(self.recipe.shard_size), "--workers", str(count_cores())]
        return Command("download", (*arguments, "--set", "min_size=16"))

    def pretrain(self, name: str, dataset: str | None) -> Command:
        """Train a row's model on the human pairs and, if given, a data set."""
        human = str(self.corpus / "human" / "train.json")
        datasets = [f"{dataset}={1 - HUMAN_SHARE:g}", f"{human}={HUMAN_SHARE:g}"] if dataset else [human]
        vision = ("--vision", short_path(image_encoder.SHIPPED))
        return Command(f"pretrain-{name}", ("pretrain", *datasets, *vision, *self.training_options("pretrain", name)))

    def finetune(self, task: str, name: str) -> Command:
        human, noisy = self.corpus / "human" / "train.json", self.runs / "noisy" / "model"
        arguments = ("finetune", task, str(human), "--init", str(noisy), *self.training_options(name, name))
        return Command(f"finetune-{name}", arguments)

    def training_options(self, recipe: str, name: str) -> list[str]:
        """Return the options of all training commands."""
        steps = getattr(self.recipe, f"{recipe}_steps")
        seed = ["--seed", str(self.config.seed)] if self.config.seed else []
        config = short_path(RECIPES / f"{recipe}.yaml")
        length = self.length_option(f"{TASK_SECTIONS[recipe]}.max_tokens=30")
        return ["--config", config, "--steps", str(steps), *seed, *length, "--out", str(self.runs / name)]

    def length_option(self, setting: str) -> list[str]:
        """Return an option for a greater text length in Chinese, where each character is a token."""
        return ["--set", setting] if self.config.lang == "zh" else []

    def caption(self) -> Command:
        arguments = ["caption", str(self.data), "--model", str(self.runs / CAPTIONER / "model"), "--name", CAPTIONER]
        arguments += ["--seed", str(self.config.seed), "--workers", str(count_cores())]
        arguments += ["--config", short_path(RECIPES / "caption.yaml")]
        return Command("caption", (*arguments, *self.length_option("generate.max_length=40")))

    def filter(self, name: str) -> Command:
        # The filter of a quick run has learned little more than its prior of one third.
        options = ["--threshold", "0.1"] if self.config.quick else []
        options = ["--threshold", "0"] if name == "captioner_only" else options
        options += ["--sources", "web"] if name == "filter_only" else []
        model = str(self.runs / "filter" / "model")
        arguments = ("filter", str(self.data), "--model", model, "--name", name, *options)
        return Command(f"filter-{name}", (*arguments, "--workers", str(count_cores())))

    def evaluate(self, name: str) -> tuple[Command, Command]:
        """Evaluate the captions and the retrieval of a row's model."""
        human, run = self.corpus / "human", self.runs / name
        caption = ["evaluate", "caption", str(human / "test.json"), "--model", str(run / "model")]
        caption += ["--results", str(run / "captions.json"), "--config", short_path(RECIPES / "evaluate.yaml")]
        retrieval = ["evaluate", "retrieval", str(human / "retrieval_test.json"), "--model", str(run / "model")]
        return (
            Command(f"evaluate-caption-{name}", (*caption, *self.length_option("generate.max_length=40"))),
            Command(f"evaluate-retrieval-{name}", (*retrieval, "--set", f"k={RERANKED}")),
        )

    def report(self) -> None:
        first, *others = (str(self.data / "filtered" / name) for name in self.rows[2:])
        page = self.out / "report.html"
        write_report(ReportConfig(first, compare=others, out=str(page)))
        self.console.print(f"[bold]Report[/] {page}  open it in a browser: counts, scores, thresholds, pictures")

    # --- running them ---------------------------------------------------------------------------------------------

    def run_in_pairs(self, commands: Sequence[Command]) -> None:
        """Run up to two commands at a time, at most one per core: small models gain little from a second thread."""
        width = max(1, min(2, count_cores()))
        for start in range(0, len(commands), width):
            self.run_commands(*commands[start : start + width])

    def run_commands(self, *commands: Command) -> None:
        """Run commands in parallel, each with an equal share of the cores. Raises CommandFailedError."""
        start = time.monotonic()
        finished = [command for command in commands if self.runner.summary(command) is not None]
        for command in commands:
            prefix = "[dim]done before:[/]" if command in finished else "[bold]$[/]"
            self.console.print(f"{prefix} {command}", soft_wrap=True)
        threads = str(max(1, count_cores() // len(commands)))
        self.runner.run(*commands, environment={"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"})
        if len(finished) < len(commands):
            self.console.print(f"[dim]{time.monotonic() - start:.0f} s[/]")

    def port(self) -> int:
        """Return the port in the stored URLs, which a resumed download fetches, or 0 for any free port."""
        urls = self.out / "urls.parquet"
        if urls.is_file():
            return int(pq.read_table(urls)["url"][0].as_py().split(":")[2].split("/")[0])
        return 0

    def print_heading(self, text: str) -> None:
        self.console.rule(f"[bold]{text}", align="left")

    # --- results --------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return the results of all rows and of the filter, without the seconds of the run."""
        filtered = self.data / "filtered"
        pairs = {name: grading.read_pairs(filtered / name, self.corpus) for name in self.rows[2:]}
        summary: dict[str, Any] = {
            "config": {name: str(value) if name == "out" else value for name, value in asdict(self.config).items()},
            "recipe": asdict(self.recipe) | {"human_share": HUMAN_SHARE},
            "download": self.runner.summary(self.fetch()),
            "filter": grading.grade_filter(pairs["bootstrapped"]),
            "web_texts": grading.kept_share_by_kind(pairs["bootstrapped"]),
            "samples": grading.sample_pictures(pairs["bootstrapped"], self.data, self.out / "samples"),
        }
        for name in self.rows:
            caption, retrieval = (self.runner.summary(command) or {} for command in self.evaluate(name))
            summary[name] = grading.grade_captions(self.runs / name / "captions.json", self.corpus, "test") | {
                "cider": caption["CIDEr"],
                "bleu4": caption["BLEU-4"],
                "retrieval_mean_recall": retrieval["mean_recall"],
                "retrieval": {key: value for key, value in retrieval.items() if "r@" in key},
                "texts_kept": sum(pair.keep for pair in pairs[name]) if name in pairs else None,
            }
        return summary


def short_path(path: Path) -> str:
    """Return a path relative to the working directory if it is below it, otherwise unchanged."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
