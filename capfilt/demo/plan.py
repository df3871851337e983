"""The commands of the demo, and the order in which they may run.

A row of the result table is a pre-training run, whose model is finetuned on the human pairs for captions and for
retrieval, and then evaluated, as in the paper. A round starts with the captioner of the row before it and with a filter
that is finetuned from the same model. The filter also learns near misses, which takes longer than retrieval alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from blipcore.device import count_cores
from capfilt.demo import image_encoder
from capfilt.engine.commands import Command, PlannedCommand

RECIPES = Path(__file__).parent / "recipes"
HUMAN_SHARE = 0.2  # of every pre-training batch, in every row
RERANKED = 12  # candidates that ITM re-ranks, enough for recall at 10 among about 600 pictures
FROZEN = "-frozen"  # ends the name of a round's captions judged by the filter of round 1
NOISY, HUMAN_ONLY, BOOTSTRAPPED = "noisy", "human_only", "bootstrapped"
FILTER_ONLY, CAPTIONER_ONLY, ORACLE = "filter_only", "captioner_only", "oracle"
# Recipe -> section with the settings of its task.
TASK_SECTIONS = {"pretrain": "task", "captioner": "caption", "filter": "retrieval", "retrieval": "retrieval"}
TABLES = (2, 3, 4, 12, 13)  # of the paper's tables, those that the demo repeats in miniature


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `capfilt demo`."""

    out: Path = Path("demo")
    scale: float = 1.0  # factor on the numbers of pictures and of training steps
    seed: int = 0  # of the corpus and the training runs
    rounds: int = 1  # of captioning, filtering and pre-training
    rows: Literal["main", "all"] = "main"
    table: list[int] = field(default_factory=list)  # tables of the paper to repeat in miniature
    quick: bool = False  # a smoke run of two minutes; its scores mean nothing
    lang: Literal["en", "zh"] = "en"  # of the web and human texts

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1000:
            raise ValueError(f"scale must be above 0 and at most 1000, not {self.scale}.")
        if not 1 <= self.rounds <= 20:
            raise ValueError(f"rounds must be from 1 to 20, not {self.rounds}.")
        for number in self.table:
            if number not in TABLES:
                raise ValueError(f"table is one of {', '.join(map(str, TABLES))} of the paper, not {number}.")


@dataclass(frozen=True)
class Recipe:
    """Numbers of pictures and steps.

    The other settings, in `recipes/`, were tuned on the validation pictures of corpus seed 100, which is in no table.
    """

    web: int = 12_000
    human: int = 1_000
    validation: int = 500
    test: int = 1_000
    pretrain_steps: int = 700
    captioner_steps: int = 800
    filter_steps: int = 300
    retrieval_steps: int = 200
    shard_size: int = 2_000

    @classmethod
    def from_config(cls, config: DemoConfig) -> Recipe:
        if config.quick:
            return cls(
                240, 80, 20, 40, pretrain_steps=12, captioner_steps=8, filter_steps=8, retrieval_steps=8, shard_size=60
            )
        base = cls()
        scaled = ("web", "human", "pretrain_steps", "captioner_steps", "filter_steps", "retrieval_steps")
        return cls(**asdict(base) | {name: round(getattr(base, name) * config.scale) for name in scaled})


def round_row(number: int) -> str:
    """Return the row of the model that round `number` ends with."""
    return {0: NOISY, 1: BOOTSTRAPPED}.get(number, f"round{number}")


def captions_name(number: int) -> str:
    """Return the source of the captions of round `number`."""
    return "captioner" if number == 1 else f"captioner{number}"


class DemoPlan:
    """Builds the commands of a demo in `config.out`."""

    def __init__(self, config: DemoConfig) -> None:
        self.config, self.recipe = config, Recipe.from_config(config)
        self.out = config.out
        self.corpus, self.data, self.runs = self.out / "corpus", self.out / "data", self.out / "runs"
        self.human = self.corpus / "human"

    def filtered(self, name: str) -> Path:
        return self.data / "filtered" / name

    def captioner(self, row: str) -> Path:
        """Return the run of a row's captioner, its model finetuned for captions."""
        return self.runs / ("captioner" if row == NOISY else f"{row}-captioner")

    def filter_run(self, row: str) -> Path:
        """Return the run of the filter that is finetuned from a row's model."""
        return self.runs / ("filter" if row == NOISY else f"{row}-filter")

    def retriever(self, row: str) -> Path:
        """Return the run of a row's model finetuned for retrieval."""
        return self.runs / f"{row}-retrieval"

    # --- parts of the plan ----------------------------------------------------------------------------------------

    def row(self, name: str, dataset: Path | None, *options: str, **training: Any) -> list[PlannedCommand]:
        """Pre-train a row's model (see `pretrain`) and finetune it twice."""
        return [self.pretrain(name, dataset, *options, **training), *self.finetune(name)]

    def round(self, number: int) -> list[PlannedCommand]:
        """Write the texts of a round, pre-train its model on them and finetune it, with the filter of a next round."""
        row = round_row(number)
        planned = [self.caption(number), self.filter_round(number), *self.row(row, self.filtered(row))]
        return planned + ([self.finetune_filter(row)] if number < self.config.rounds else [])

    def judge_with_first_filter(self, number: int) -> PlannedCommand:
        """Let the filter of round 1 judge the captions of a later round; the set is not trained on."""
        name = f"{round_row(number)}{FROZEN}"
        return self.filter(name, self.filter_run(NOISY), [captions_name(number)])

    # --- the commands ---------------------------------------------------------------------------------------------

    def download(self) -> PlannedCommand:
        arguments = ["download", str(self.out / "urls.parquet"), str(self.data), "--allow-private"]
        arguments += ["--shard-size", str(self.recipe.shard_size), "--workers", str(count_cores())]
        return PlannedCommand(Command("download", (*arguments, "--set", "min_size=16")), slots=count_cores())

    def pretrain(
        self, name: str, dataset: Path | None, *options: str, init: Path | None = None, steps: int | None = None
    ) -> PlannedCommand:
        """Train a row's model on the human pairs and, if given, a data set; from the run `init` or from scratch."""
        human = str(self.human / "train.json")
        datasets = [f"{dataset}={1 - HUMAN_SHARE:g}", f"{human}={HUMAN_SHARE:g}"] if dataset else [human]
        start = ["--init", str(init / "model")] if init else ["--vision", short_path(image_encoder.SHIPPED)]
        training = self.training_options("pretrain", self.runs / name, steps)
        command = Command(f"pretrain-{name}", ("pretrain", *datasets, *start, *training, *options))
        needs = (f"filter-{Path(dataset).name}",) if dataset else ()
        return PlannedCommand(command, (*needs, f"pretrain-{init.name}") if init else needs)

    def finetune(self, row: str) -> list[PlannedCommand]:
        """Finetune a row's model on the human pairs, for captions and for retrieval."""
        return [
            self._finetune(row, "caption", "captioner", self.captioner(row)),
            self._finetune(row, "retrieval", "retrieval", self.retriever(row)),
        ]

    def finetune_filter(self, row: str) -> PlannedCommand:
        """Finetune the filter of the round after a row."""
        return self._finetune(row, "retrieval", "filter", self.filter_run(row))

    def _finetune(self, row: str, task: str, recipe: str, run: Path) -> PlannedCommand:
        arguments = ("finetune", task, str(self.human / "train.json"), "--init", str(self.runs / row / "model"))
        command = Command(f"finetune-{run.name}", (*arguments, *self.training_options(recipe, run)))
        return PlannedCommand(command, needs=(f"pretrain-{row}",))

    def training_options(self, recipe: str, run: Path, steps: int | None = None) -> list[str]:
        """Return the options of all training commands; `steps` replaces those of the recipe."""
        steps = steps or getattr(self.recipe, f"{recipe}_steps")
        seed = ["--seed", str(self.config.seed)] if self.config.seed else []
        config = short_path(RECIPES / f"{recipe}.yaml")
        length = self.length_option(f"{TASK_SECTIONS[recipe]}.max_tokens=30")
        return ["--config", config, "--steps", str(steps), *seed, *length, "--out", str(run)]

    def length_option(self, setting: str) -> list[str]:
        """Return an option for a greater text length in Chinese, where each character is a token."""
        return ["--set", setting] if self.config.lang == "zh" else []

    def caption(self, number: int) -> PlannedCommand:
        """Write the captions of round `number`, by the captioner of the row before."""
        return self.write_captions(captions_name(number), self.captioner(round_row(number - 1)))

    def write_captions(self, name: str, captioner: Path, *options: str) -> PlannedCommand:
        arguments = ["caption", str(self.data), "--model", str(captioner / "model"), "--name", name]
        arguments += ["--seed", str(self.config.seed), "--workers", str(count_cores())]
        arguments += ["--config", short_path(RECIPES / "caption.yaml"), *self.length_option("generate.max_length=40")]
        command = Command("caption" if name == "captioner" else f"caption-{name}", (*arguments, *options))
        return PlannedCommand(command, (f"finetune-{captioner.name}", f"pretrain-{captioner.name}"), count_cores())

    def filter_round(self, number: int) -> PlannedCommand:
        """Filter the web texts and the captions of this and all earlier rounds."""
        sources = ["web", *(captions_name(earlier) for earlier in range(1, number + 1))]
        return self.filter(round_row(number), self.filter_run(round_row(number - 1)), sources)

    def filter(self, name: str, model: Path, sources: Sequence[str], threshold: float | None = None) -> PlannedCommand:
        """Write a filtered set by the recipe, or with a threshold alone."""
        options = ["--config", short_path(RECIPES / "filtering.yaml")]
        if self.config.quick and threshold is None:  # its filter has learned little more than its prior of one third
            threshold = 0.1
        if threshold is not None:
            options = ["--threshold", f"{threshold:g}"]
        arguments = ["filter", str(self.data), "--model", str(model / "model"), "--name", name, *options]
        arguments += [argument for source in sources for argument in ("--sources", source)]
        needs = [f"finetune-{model.name}", f"pretrain-{model.name}", *_caption_commands(sources)]
        command = Command(f"filter-{name}", (*arguments, "--workers", str(count_cores())))
        return PlannedCommand(command, tuple(needs), count_cores())

    def evaluate(self, row: str) -> list[PlannedCommand]:
        """Evaluate a row's finetuned models and, as "ROW-zero_shot", its model without finetuning."""
        model, captioner, retriever = self.runs / row, self.captioner(row), self.retriever(row)
        finetuned = [
            self.evaluate_caption(row, captioner, "test", f"finetune-{captioner.name}"),
            self.evaluate_retrieval(row, retriever, f"finetune-{retriever.name}"),
        ]
        if self.config.quick:
            return finetuned
        return [
            *finetuned,
            self.evaluate_caption(f"{row}-zero_shot", model, "test", f"pretrain-{row}"),
            self.evaluate_retrieval(f"{row}-zero_shot", model, f"pretrain-{row}"),
        ]

    def validate(self, row: str) -> PlannedCommand:
        """Evaluate a row's captioner on the validation pictures, which choose the best round."""
        captioner = self.captioner(row)
        return self.evaluate_caption(f"{row}-validation", captioner, "validation", f"finetune-{captioner.name}")

    def evaluate_caption(self, name: str, run: Path, split: str, *needs: str) -> PlannedCommand:
        """Evaluate the captions of a run's model on the pictures of a split."""
        results, scores = run / f"{split}_captions.json", run / f"{split}_cider.json"
        arguments = ["evaluate", "caption", str(self.human / f"{split}.json"), "--model", str(run / "model")]
        arguments += ["--results", str(results), "--config", short_path(RECIPES / "evaluate.yaml")]
        arguments += ["--set", f"scores={scores}", *self.length_option("generate.max_length=40")]
        return PlannedCommand(Command(f"evaluate-caption-{name}", tuple(arguments)), needs)

    def evaluate_retrieval(self, name: str, run: Path, *needs: str) -> PlannedCommand:
        """Evaluate the retrieval of a run's model on the test pictures."""
        arguments = ["evaluate", "retrieval", str(self.human / "retrieval_test.json"), "--model", str(run / "model")]
        arguments += ["--set", f"k={RERANKED}", "--set", f"scores={run / 'test_ranks.json'}"]
        return PlannedCommand(Command(f"evaluate-retrieval-{name}", tuple(arguments)), needs)


def _caption_commands(sources: Iterable[str]) -> list[str]:
    """Return the names of the commands that write the captions of these sources."""
    return ["caption" if source == "captioner" else f"caption-{source}" for source in sources if source != "web"]


def short_path(path: Path) -> str:
    """Return a path relative to the working directory if it is below it, otherwise unchanged."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
