"""`capfilt demo`: the whole of CapFilt on the embedded corpus, with the commands that a user would type.

    draw the corpus, serve it over HTTP
    -> capfilt download                        noisy pairs, as shards
    -> capfilt pretrain                        the first model, on the noise                      row "noisy"
    -> capfilt finetune caption | retrieval    captioner and filter, on the small clean set
    -> capfilt caption, capfilt filter         synthetic captions; what the filter keeps of both, as Parquet shards
    -> capfilt pretrain                        a new model on them, from scratch                  row "bootstrapped"
    -> capfilt evaluate                        on held-out clean scenes
    -> tables, sample pictures, summary.json, report.html

Every row trains for the same number of steps from the same image encoder, and the same share of every batch is human
pairs: else a row would win by its human share, not by its texts. "human_only" is the control without any web text.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from rich.console import Console

from blipcore.io.writing import write_json
from capfilt.demo import image_encoder, judge, show
from capfilt.demo.corpus import CorpusConfig, url_table, write_corpus
from capfilt.demo.server import CorpusServer
from capfilt.engine.commands import Step, Steps, claim
from capfilt.report.stage import ReportConfig, write_report
from capfilt.shards.tables import write_table

RECIPES = Path(__file__).parent / "recipes"
HUMAN_SHARE = 0.2  # of every pre-training batch, in every row
HUMAN_CAPTIONS = 5  # of each human picture, as in COCO
SHORTLIST = 16  # candidates that ITM re-ranks: recall goes to 10, and the gallery is some 600 pictures
CAPTIONER = "captioner"
SECTIONS = {"pretrain": "task", "captioner": "caption", "filter": "retrieval"}  # of a recipe's task in its settings


@dataclass(frozen=True)
class DemoConfig:
    """How large a demo, and which rows of the table."""

    out: Path = Path("demo")
    scale: float = 1.0  # of pictures and training steps
    seed: int = 0  # of the corpus and the training runs
    rows: Literal["main", "all"] = "main"
    quick: bool = False  # a smoke run of two minutes that says nothing about quality
    lang: Literal["en", "zh"] = "en"  # of web and human texts

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1000:
            raise ValueError(f"--scale {self.scale}: the size of the demo relative to the default, above 0")


@dataclass(frozen=True)
class Recipe:
    """Sizes and steps; rates and sampling were chosen on validation pictures of corpus seed 100, in no table."""

    web: int = 12_000
    human: int = 1_000
    validation: int = 500
    test: int = 1_000
    pretrain_steps: int = 800
    captioner_steps: int = 800
    filter_steps: int = 400
    shard_size: int = 2_000

    @classmethod
    def of(cls, config: DemoConfig) -> Recipe:
        if config.quick:
            return cls(240, 80, 20, 40, pretrain_steps=12, captioner_steps=8, filter_steps=8, shard_size=60)
        base = cls()
        scaled = ("web", "human", "pretrain_steps", "captioner_steps", "filter_steps")
        return cls(**asdict(base) | {name: round(getattr(base, name) * config.scale) for name in scaled})


def run_demo(config: DemoConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the demo into `config.out`; returns what `summary.json` holds. Launched again, it goes on where it was."""
    # Into a file, lines as wide as the tables need; a terminal knows its own width.
    console = console or Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
    return Demo(config, console).run()


class Demo:
    """One demo run: where its files lie, and its steps in order."""

    def __init__(self, config: DemoConfig, console: Console) -> None:
        self.config, self.console, self.recipe = config, console, Recipe.of(config)
        self.out = config.out
        self.corpus, self.data, self.runs = self.out / "corpus", self.out / "data", self.out / "runs"
        self.steps = Steps(self.out / "logs")
        self.rows = ["noisy", "human_only", "bootstrapped"]
        if config.rows == "all":
            self.rows += ["filter_only", "captioner_only"]

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        settings = {name: value for name, value in asdict(self.config).items() if name not in ("out", "rows")}
        claim(self.out, "demo.json", settings, "demo")
        self.heading("1  A noisy web: draw the corpus, serve it, download it")
        self.download()
        self.heading("2  Pre-train on the noise (and, as a control, on the human pairs alone)")
        self.together(self.pretrain("noisy", str(self.data)), self.pretrain("human_only", None))
        self.heading("3  Finetune captioner and filter from the noisy model, on the human pairs")
        self.together(self.finetune("caption", CAPTIONER), self.finetune("retrieval", "filter"))
        self.heading("4  Caption every picture; keep the texts that match; rewrite the data set")
        self.together(self.caption())
        for name in self.rows[2:]:
            self.together(self.filter(name))
        self.heading("5  Pre-train a new model on the result, from scratch")
        self.in_pairs([self.pretrain(name, str(self.data / "filtered" / name)) for name in self.rows[2:]])
        self.heading("6  Evaluate on held-out clean scenes")
        self.in_pairs([command for name in self.rows for command in self.evaluate(name)])
        summary = self.summary() | {"seconds": round(time.monotonic() - started)}
        write_json(self.out / "summary.json", summary)
        show.tables(self.console, summary, self.out)
        if self.config.quick:
            self.console.print("A quick run: models of a few steps. Its tables say that it works, not how well.")
        show.picture(summary, self.out)
        self.report()
        return summary

    # --- the steps, each as the command a user would type ---------------------------------------------------------

    def download(self) -> None:
        recipe = self.recipe
        sizes = {name: getattr(recipe, name) for name in ("web", "human", "validation", "test")}
        corpus = CorpusConfig(seed=self.config.seed, human_captions=HUMAN_CAPTIONS, lang=self.config.lang, **sizes)
        counts = write_corpus(corpus, self.corpus)
        self.console.print("drew " + ", ".join(f"{number:,} {part}" for part, number in counts.items()) + " pictures")
        with CorpusServer(self.corpus / "www", self.free_port()) as server:
            urls = self.out / "urls.parquet"
            if not urls.is_file():  # a resumed demo keeps the addresses that its tables name
                write_table(urls, url_table(self.corpus, server.url))
            self.together(self.fetch())

    def fetch(self) -> Step:
        return Step("download", (
            "download", str(self.out / "urls.parquet"), str(self.data), "--allow-private",
            "--shard-size", str(self.recipe.shard_size), "--workers", str(cores()), "--set", "min_size=16",
        ))  # fmt: skip

    def pretrain(self, name: str, dataset: str | None) -> Step:
        human = str(self.corpus / "human" / "train.json")
        datasets = [f"{dataset}={1 - HUMAN_SHARE:g}", f"{human}={HUMAN_SHARE:g}"] if dataset else [human]
        vision = ("--vision", typed(image_encoder.SHIPPED))
        return Step(f"pretrain-{name}", ("pretrain", *datasets, *vision, *self.training("pretrain", name)))

    def finetune(self, task: str, name: str) -> Step:
        human, noisy = self.corpus / "human" / "train.json", self.runs / "noisy" / "model"
        words = ("finetune", task, str(human), "--init", str(noisy), *self.training(name, name))
        return Step(f"finetune-{name}", words)

    def training(self, recipe: str, name: str) -> list[str]:
        """Options that all training commands share."""
        steps = getattr(self.recipe, f"{recipe}_steps")
        seed = ["--seed", str(self.config.seed)] if self.config.seed else []
        config = typed(RECIPES / f"{recipe}.yaml")
        longer = self.longer(f"{SECTIONS[recipe]}.max_tokens=30")
        return ["--config", config, "--steps", str(steps), *seed, *longer, "--out", str(self.runs / name)]

    def longer(self, setting: str) -> list[str]:
        """A length for texts in Chinese, of which every character is a token; the recipes are made for English."""
        return ["--set", setting] if self.config.lang == "zh" else []

    def caption(self) -> Step:
        return Step("caption", (
            "caption", str(self.data), "--model", str(self.runs / CAPTIONER / "model"), "--name", CAPTIONER,
            "--seed", str(self.config.seed), "--workers", str(cores()),
            "--config", typed(RECIPES / "caption.yaml"), *self.longer("generate.max_length=40"),
        ))  # fmt: skip

    def filter(self, name: str) -> Step:
        # The filter of a quick run has learned little more than its prior of one third.
        how = ["--threshold", "0.1"] if self.config.quick else []
        how = ["--threshold", "0"] if name == "captioner_only" else how
        how += ["--sources", "web"] if name == "filter_only" else []
        model = str(self.runs / "filter" / "model")
        words = ("filter", str(self.data), "--model", model, "--name", name, *how, "--workers", str(cores()))
        return Step(f"filter-{name}", words)

    def evaluate(self, name: str) -> tuple[Step, Step]:
        """Its captions and its retrieval."""
        human, run = self.corpus / "human", self.runs / name
        caption = ("evaluate", "caption", str(human / "test.json"), "--model", str(run / "model"))
        said = ("--results", str(run / "captions.json"), "--config", typed(RECIPES / "evaluate.yaml"))
        retrieval = ("evaluate", "retrieval", str(human / "retrieval_test.json"), "--model", str(run / "model"))
        return (
            Step(f"evaluate-caption-{name}", (*caption, *said, *self.longer("generate.max_length=40"))),
            Step(f"evaluate-retrieval-{name}", (*retrieval, "--set", f"k={SHORTLIST}")),
        )

    def report(self) -> None:
        """The page about what the filter did, the other filtered rows beside it."""
        first, *others = (str(self.data / "filtered" / name) for name in self.rows[2:])
        page = self.out / "report.html"
        write_report(ReportConfig(first, compare=others, out=str(page)))
        self.console.print(
            f"[bold]Report[/] {page}  counts, scores, a threshold to move, pictures: open it in a browser"
        )

    # --- running them ---------------------------------------------------------------------------------------------

    def in_pairs(self, steps: Sequence[Step]) -> None:
        """As many at a time as there are cores: small models gain little from a second thread."""
        width = max(1, min(2, cores()))
        for start in range(0, len(steps), width):
            self.together(*steps[start : start + width])

    def together(self, *steps: Step) -> None:
        """Run commands side by side, the cores shared among them; raises StepFailedError."""
        started, again = time.monotonic(), [step for step in steps if self.steps.summary(step) is not None]
        for step in steps:
            self.console.print(f"{'[dim]done before:[/]' if step in again else '[bold]$[/]'} {step}", soft_wrap=True)
        threads = str(max(1, cores() // len(steps)))
        self.steps.run(*steps, environment={"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"})
        if len(again) < len(steps):
            self.console.print(f"[dim]{time.monotonic() - started:.0f} s[/]")

    def free_port(self) -> int:
        """The port of the first launch, so that a resumed download finds its URLs answered."""
        urls = self.out / "urls.parquet"
        if urls.is_file():
            return int(pq.read_table(urls)["url"][0].as_py().split(":")[2].split("/")[0])
        return 0

    def heading(self, text: str) -> None:
        self.console.rule(f"[bold]{text}", align="left")

    # --- what came out --------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        filtered = self.data / "filtered"
        pairs = {name: judge.read_pairs(filtered / name, self.corpus) for name in self.rows[2:]}
        summary: dict[str, Any] = {
            "config": {name: str(value) if name == "out" else value for name, value in asdict(self.config).items()},
            "recipe": asdict(self.recipe) | {"human_share": HUMAN_SHARE},
            "download": self.steps.summary(self.fetch()),
            "filter": judge.judge_filter(pairs["bootstrapped"]),
            "web_texts": judge.kept_by_kind(pairs["bootstrapped"]),
            "samples": judge.sample_pictures(pairs["bootstrapped"], self.data, self.out / "samples"),
        }
        for name in self.rows:
            caption, retrieval = (self.steps.summary(step) for step in self.evaluate(name))
            summary[name] = judge.judge_captions(self.runs / name / "captions.json", self.corpus, "test") | {
                "cider": caption["CIDEr"],
                "bleu4": caption["BLEU-4"],
                "retrieval_mean_recall": retrieval["mean_recall"],
                "retrieval": {key: value for key, value in retrieval.items() if "r@" in key},
                "texts_kept": sum(pair.keep for pair in pairs[name]) if name in pairs else None,
            }
        return summary


def typed(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
