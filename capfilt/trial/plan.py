"""The plan of a trial: its config, and the commands of each training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from capfilt.config import resolve
from capfilt.engine.commands import Command

Test = Literal["caption", "retrieval"]
# Test -> the finetuning that its model has.
TESTS: dict[Test, str] = {"caption": "finetune_captioner", "retrieval": "finetune_filter"}
SECTIONS = ("pretrain", *TESTS.values(), "evaluate")
# Seeds of the sets are that far apart: two sets share no seed, and more `seeds` keep the runs that exist.
SEEDS_PER_SET = 1000


@dataclass
class TrialConfig:
    """Settings of `capfilt trial`. A section holds settings of its command, as in a --config file."""

    # filtered sets, shard sets or JSON files; the others are compared with the first
    selections: list[str]
    # held-out annotations: FILE for both tests, caption=FILE or retrieval=FILE
    test: list[str] = field(default_factory=list)
    # JSON files of pictures and human captions, the same for all sets
    human: list[str] = field(default_factory=list)
    # of each pre-training batch
    human_share: float = 0.2
    # training runs per set
    seeds: int = 3
    seed: int = 0
    # of pre-training
    steps: int = 2000
    # of each finetuning on the human pairs before a test, as in the paper; 0 for none
    finetune_steps: int = 0
    # training runs at a time
    parallel: int = 1
    out: str = "trial"
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune_captioner: dict[str, Any] = field(default_factory=dict)
    finetune_filter: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.selections) < 2:
            raise ValueError("A trial compares at least two sets; give one more.")
        if not 2 <= self.seeds <= SEEDS_PER_SET:
            raise ValueError(
                f"seeds must be from 2 to {SEEDS_PER_SET}, not {self.seeds}: the difference of two runs alone can be "
                "due to their seeds."
            )
        if self.steps < 1 or self.finetune_steps < 0 or self.parallel < 1:
            raise ValueError("steps and parallel must be at least 1, finetune_steps at least 0.")
        if not 0 < self.human_share < 1:
            raise ValueError(f"human_share is a share of a batch, between 0 and 1, not {self.human_share}.")
        if self.finetune_steps and not self.human:
            raise ValueError("Finetuning needs human pairs: give --human FILE, or leave out finetune_steps.")
        parse_tests(self.test)

    @property
    def tests(self) -> dict[Test, str]:
        """The annotation file of each test."""
        return parse_tests(self.test)

    @property
    def logs(self) -> Path:
        """Folder of the logs and summaries of all commands."""
        return Path(self.out) / "logs"


@dataclass(frozen=True)
class TrainingRun:
    """A training run: the set of number `number` with the replicate `replicate` of its seeds."""

    config: TrialConfig
    number: int
    replicate: int

    @property
    def name(self) -> str:
        return f"{self.number + 1}-{Path(self.config.selections[self.number]).name or 'set'}-{self.replicate}"

    @property
    def folder(self) -> Path:
        return Path(self.config.out) / "runs" / self.name

    @property
    def seed(self) -> int:
        return self.config.seed + SEEDS_PER_SET * self.number + self.replicate

    def scores(self, test: Test) -> Path:
        """Return the file with the score of each held-out picture."""
        return self.folder / f"{test}.json"


@dataclass(frozen=True)
class TrialStep:
    """A command of a trial and its amount of work, from which `--dry-run` estimates its hours.

    Commands of one kind run at one rate.
    """

    command: Command
    kind: str
    images: int | None = None


def parse_tests(values: list[str]) -> dict[Test, str]:
    """Return the annotation file of each test. Raises ValueError."""
    tests: dict[Test, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        named: list[Test] = [test for test in TESTS if test == name] if equals else list(TESTS)
        if not named or not (path if equals else value):
            raise ValueError(f"test is FILE, caption=FILE or retrieval=FILE, not '{value}'.")
        tests |= dict.fromkeys(named, path if equals else value)
    if not tests:
        raise ValueError("A trial needs held-out annotations: give --test FILE.")
    return {test: tests[test] for test in TESTS if test in tests}


def training_runs(config: TrialConfig) -> list[TrainingRun]:
    """Return the training runs, replicate by replicate, so that all sets have results early."""
    return [
        TrainingRun(config, number, replicate)
        for replicate in range(config.seeds)
        for number in range(len(config.selections))
    ]


def plan(config: TrialConfig) -> list[tuple[TrainingRun, list[TrialStep]]]:
    """Return the commands of each run in order. Raises ValueError for a wrong setting, with its section."""
    return [(run, list(_steps(config, run))) for run in training_runs(config)]


def missing_files(config: TrialConfig) -> list[str]:
    """Return the local inputs that do not exist."""
    inputs = dict.fromkeys([*config.selections, *config.human, *config.tests.values()])
    return [path for path in inputs if "://" not in path and not Path(path).exists()]


def check_inputs(config: TrialConfig) -> None:
    """Open all data sets and annotations: a fault in one of them must not show after hours of training.

    Raises ValueError or FileNotFoundError.
    """
    from blipcore.data.shard_datasets import open_dataset
    from blipcore.evaluation import EvaluateRun, make_evaluator

    missing = missing_files(config)
    if missing:
        raise FileNotFoundError(f"Some input files do not exist: {', '.join(missing)}.")
    for path in dict.fromkeys([*config.selections, *config.human]):
        open_dataset(path, config.pretrain.get("image_root"))
    for test, path in config.tests.items():
        run = resolve(EvaluateRun, None, (), {**config.evaluate, "task": test, "annotations": path, "model": "none"})
        make_evaluator(test, path, run.image_root, run).check_pictures(path, run.image_root)


def settings_file(config: TrialConfig, section: str) -> Path:
    return Path(config.out) / "configs" / f"{section}.yaml"


def _steps(config: TrialConfig, run: TrainingRun) -> Iterator[TrialStep]:
    share = config.human_share if config.human else 0.0
    data = [config.selections[run.number]]
    if share:
        data = [f"{data[0]}={1 - share:g}", *(f"{path}={share / len(config.human):g}" for path in config.human)]
    train = {"train.steps": config.steps, "train.seed": run.seed}
    options, settings = _resolve(config, "pretrain", {"data": data, **train})
    model = run.folder / "pretrain"
    arguments = ["pretrain", *data, "--out", str(model), *_training(config.steps, run.seed), *options]
    yield TrialStep(Command(f"{run.name}-pretrain", tuple(arguments)), "pretrain", _images(settings, config.steps))
    for test, section in TESTS.items():
        if test not in config.tests:
            continue
        tested = model
        if config.finetune_steps:
            tested = run.folder / section
            yield _finetune(config, run, test, model / "model", tested)
        scores, file = str(run.scores(test)), config.tests[test]
        fixed = {"task": test, "annotations": file, "model": str(tested / "model"), "scores": scores}
        options, _ = _resolve(config, "evaluate", fixed)
        arguments = ["evaluate", test, file, "--model", str(tested / "model"), *options, "--set", f"scores={scores}"]
        yield TrialStep(Command(f"{run.name}-evaluate-{test}", tuple(arguments)), f"evaluate-{test}")


def _finetune(config: TrialConfig, run: TrainingRun, test: Test, init: Path, out: Path) -> TrialStep:
    section = TESTS[test]
    fixed = {"task": test, "annotations": config.human, "init": str(init)}
    options, settings = _resolve(
        config, section, {**fixed, "train.steps": config.finetune_steps, "train.seed": run.seed}
    )
    arguments = ["finetune", test, *config.human, "--init", str(init), "--out", str(out)]
    arguments += [*_training(config.finetune_steps, run.seed), *options]
    images = _images(settings, config.finetune_steps)
    return TrialStep(Command(f"{run.name}-{section.replace('_', '-')}", tuple(arguments)), section, images)


def _training(steps: int, seed: int) -> list[str]:
    return ["--steps", str(steps), "--seed", str(seed)]


def _images(run: Any, steps: int) -> int:
    return steps * run.train.batch_size * run.train.accumulate


def _resolve(config: TrialConfig, section: str, fixed: Mapping[str, Any]) -> tuple[list[str], Any]:
    """Return the options that pass a section's settings to its command, and the command's config.

    `fixed` holds the settings that the trial sets, with dots for nested ones. Raises ValueError if a section sets one.
    """
    from blipcore.evaluation import EvaluateRun
    from blipcore.train.runs import FinetuneRun, PretrainRun

    settings: dict[str, Any] = getattr(config, section)
    for name in fixed:
        parent, _, child = name.rpartition(".")
        inner = settings.get(parent) if parent else settings
        if isinstance(inner, Mapping) and child in inner:
            raise ValueError(f"{section}: leave out '{name}'; the trial sets it.")
    cls: Any = {"pretrain": PretrainRun, "evaluate": EvaluateRun}.get(section, FinetuneRun)
    try:
        resolved = resolve(cls, None, (), {**settings, **fixed})
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from None
    return ["--config", str(settings_file(config, section))] if settings else [], resolved
