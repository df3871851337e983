"""The plan of a bootstrap run: its config, and the commands of each round in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blipcore.io.storage import to_path
from capfilt.caption.stage import CaptionConfig
from capfilt.caption_and_filter import SHARED, CaptionFilterConfig
from capfilt.config import resolve
from capfilt.engine.commands import Command, CommandRunner
from capfilt.filter.config import FilterConfig
from capfilt.ingest.download_config import DownloadConfig
from capfilt.shards.manifest import read_manifest

TESTS = ("caption", "retrieval")
# Settings of the filter that the filter of round 1 keeps when it decides about later captions.
FROZEN_SETTINGS = (
    "threshold", "out", "workers", "batch_size", "dtype", "backend", "engine", "first_token", "tokenizer", "numerics",
)  # fmt: skip
# Sections of the YAML file that are passed to a command with --config.
COMMAND_SECTIONS = ("download", "pretrain", "finetune_captioner", "finetune_filter", "filter", "evaluate")


@dataclass
class BootstrapConfig:
    """Settings of `capfilt bootstrap`. A section holds settings of its command, as in a --config file."""

    data: str  # shard set of the noisy pairs; with `urls`, the folder for it
    human: list[str]  # JSON files of pictures and human captions
    out: str  # folder for models, logs, settings and reports
    rounds: int = 1
    urls: str | None = None  # list of URLs to download first
    init: str | None = None  # model of round 0; otherwise one is trained on the noisy pairs
    human_share: float | None = None  # of each pre-training batch; None: in proportion to the numbers of pictures
    nproc: int = 1  # processes per training run: one per GPU
    tests: dict[str, str] = field(default_factory=dict)  # held-out JSON files for "caption" and "retrieval"
    validation: str | None = None  # held-out JSON file of captions that chooses the round; otherwise the tests do
    accumulate: bool = True  # each round filters the captions of all rounds so far, not its own alone
    frozen_filter: bool = True  # from round 2 on, the filter of round 1 judges the captions of the round too
    stop: bool = True  # no further round after one whose held-out score has not risen beyond its interval
    download: dict[str, Any] = field(default_factory=dict)
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune_captioner: dict[str, Any] = field(default_factory=dict)
    finetune_filter: dict[str, Any] = field(default_factory=dict)
    caption: dict[str, Any] = field(default_factory=dict)
    filter: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}.")
        if self.human_share is not None and not 0 < self.human_share < 1:
            raise ValueError(f"human_share is a share of a batch, between 0 and 1, not {self.human_share}.")
        unknown = [name for name in self.tests if name not in TESTS]
        if unknown:
            raise ValueError(f"tests takes {' and '.join(TESTS)}, not '{unknown[0]}'.")

    @property
    def logs(self) -> Path:
        """Folder of the logs and summaries of all steps."""
        return Path(self.out) / "logs"


@dataclass(frozen=True)
class Step:
    """A command of the loop and the amount of its work, from which `--dry-run` estimates its hours."""

    command: Command
    kind: str  # steps of one kind run at one rate
    unit: str = ""  # its summary has a "<unit>_per_second"; empty for a short step
    amount: int | None = None  # units of work, if known
    round: int = 0  # that it completes


def plan(config: BootstrapConfig) -> list[Step]:
    """Return all steps in order. Raises ValueError, with the name of the section, for a wrong setting."""
    return [replace(step, round=number) for number in range(config.rounds + 1) for step in _round_steps(config, number)]


def missing_files(config: BootstrapConfig) -> list[str]:
    """Return the local input files that do not exist. Some may be needed only after days."""
    tests = [*config.tests.values(), *([config.validation] if config.validation else [])]
    inputs = dict.fromkeys([config.urls or config.data, *config.human, *tests])
    return [path for path in inputs if "://" not in path and not Path(path).exists()]


def round_model(config: BootstrapConfig, number: int) -> str:
    """Return the path of the model that round `number` ends with."""
    if number == 0 and config.init:
        return config.init
    return str(_round_folder(config, number) / "pretrain" / "model")


def section_settings(config: BootstrapConfig, section: str) -> dict[str, Any]:
    """Return the settings that a section passes to its command; those of the filter include the captioner's."""
    if section == "filter" and config.caption:
        return {**config.filter, "captioner": config.caption}
    return getattr(config, section)


def settings_file(config: BootstrapConfig, section: str) -> Path:
    return Path(config.out) / "configs" / f"{section}.yaml"


def captions_name(number: int) -> str:
    """Return the source of the captions of round `number`, and the name of its filtered set."""
    return f"round-{number}"


def filtered_folder(config: BootstrapConfig, number: int) -> Path:
    """Return the filtered set of round `number`."""
    out = config.filter.get("out")
    return Path(out or config.data) / "filtered" / captions_name(number)


def finetuned_model(config: BootstrapConfig, number: int, role: str) -> str:
    """Return the path of the "captioner" or "filter" finetuned from the model of round `number`, for the next round."""
    return str(_round_folder(config, number + 1) / role / "model")


def scores_file(config: BootstrapConfig, number: int, test: str) -> Path:
    """Return the file with the score of each picture of a test, or of "validation", by a round's finetuned model."""
    return _round_folder(config, number) / f"{test}_scores.json"


def chosen_by(config: BootstrapConfig) -> str | None:
    """Return the test whose scores choose the round: "validation", otherwise the first test; None without any."""
    return "validation" if config.validation else next((test for test in TESTS if test in config.tests), None)


def _round_steps(config: BootstrapConfig, number: int) -> Iterator[Step]:
    """Yield the steps of a round, up to the captioner and filter that start the next one."""
    if number == 0:
        if config.urls:
            options, _ = _resolve_section(config, "download", {"urls": config.urls, "out": config.data})
            yield Step(Command("download", ("download", config.urls, config.data, *options)), "download")
        if not config.init:
            yield _pretrain(config, 0, config.data)
    else:
        yield _filter(config, number)
        if number > 1 and config.frozen_filter:
            yield _judge_with_first_filter(config, number)
        filtered = [str(filtered_folder(config, earlier)) for earlier in range(number, 0, -1)]
        yield _report(config, number, filtered)
        yield _pretrain(config, number, filtered[0])
    yield from _evaluate(config, number)
    yield _finetune(config, number, "caption", "captioner")
    yield _finetune(config, number, "retrieval", "filter")
    yield from _evaluate_finetuned(config, number)


def _finetune(config: BootstrapConfig, number: int, task: str, role: str) -> Step:
    """Return the step that finetunes the model of a round, with the number of the round that uses it: the next one."""
    init, following = round_model(config, number), number + 1
    fixed = {"task": task, "annotations": config.human, "init": init}
    options, run = _resolve_section(config, f"finetune_{role}", fixed)
    out = str(_round_folder(config, following) / role)
    arguments = ("finetune", task, *config.human, "--init", init, "--out", out, *options, "--nproc", str(config.nproc))
    first_round = CommandRunner(config.logs).named_summary(f"1-finetune-{role}") or {}
    amount = _images(run, config.nproc, steps=first_round.get("steps"))
    return Step(Command(f"{following}-finetune-{role}", arguments), f"finetune-{role}", "images", amount)


def _filter(config: BootstrapConfig, number: int) -> Step:
    """Return the step that captions and filters in one pass."""
    name = captions_name(number)
    captioner, model = (finetuned_model(config, number - 1, role) for role in ("captioner", "filter"))
    shared = [setting for setting in config.caption if setting in SHARED]
    if shared:
        raise ValueError(f"caption: leave out '{shared[0]}'; one pass captions and filters, so set it under filter.")
    _resolve_section(config, "caption", {"data": config.data, "model": captioner, "name": name})
    first = 1 if config.accumulate else number
    sources = ["web", *(captions_name(earlier) for earlier in range(first, number + 1))]
    fixed = {"data": config.data, "model": model, "name": name, "sources": sources}
    fixed |= {"captioner.model": captioner, "captioner.name": name}
    options, _ = _resolve_section(config, "filter", fixed)
    arguments = ["filter", config.data, "--model", model, "--captioner", captioner, "--captioner-name", name]
    arguments += ["--name", name, *(argument for source in sources for argument in ("--sources", source)), *options]
    return Step(Command(f"{number}-filter", tuple(arguments)), "filter", "pictures", _pictures(config))


def _judge_with_first_filter(config: BootstrapConfig, number: int) -> Step:
    """Return the step in which the filter of round 1 judges a round's captions; the set is not trained on."""
    source, model = captions_name(number), finetuned_model(config, 0, "filter")
    fixed = {"data": config.data, "model": model, "name": f"{source}-frozen", "sources": [source]}
    settings = {name: value for name, value in config.filter.items() if name in FROZEN_SETTINGS and value != "auto"}
    resolve(FilterConfig, None, (), {**settings, **fixed})
    arguments = ["filter", config.data, "--model", model, "--name", f"{source}-frozen", "--sources", source]
    arguments += [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return Step(Command(f"{number}-frozen-filter", tuple(arguments)), "frozen-filter", "pictures", _pictures(config))


def _report(config: BootstrapConfig, number: int, filtered: list[str]) -> Step:
    compare = [argument for earlier in filtered[1:] for argument in ("--compare", earlier)]
    page = str(_round_folder(config, number) / "report.html")
    return Step(Command(f"{number}-report", ("report", filtered[0], *compare, "--out", page)), "report")


def _pretrain(config: BootstrapConfig, number: int, dataset: str) -> Step:
    share = config.human_share
    data = [dataset, *config.human]
    if share is not None:
        data = [f"{dataset}={1 - share:g}", *(f"{path}={share / len(config.human):g}" for path in config.human)]
    options, run = _resolve_section(config, "pretrain", {"data": data})
    out = str(_round_folder(config, number) / "pretrain")
    arguments = ("pretrain", *data, "--out", out, *options, "--nproc", str(config.nproc))
    amount = _images(run, config.nproc, _pictures(config))
    return Step(Command(f"{number}-pretrain", arguments), "pretrain", "images", amount)


def _evaluate(config: BootstrapConfig, number: int) -> Iterator[Step]:
    """Evaluate the model of a round without finetuning."""
    for test in TESTS:
        if test in config.tests:
            yield _test(config, f"{number}-evaluate-{test}", test, config.tests[test], round_model(config, number))


def _evaluate_finetuned(config: BootstrapConfig, number: int) -> Iterator[Step]:
    """Evaluate the finetuned models of a round, as the paper does."""
    models = {"caption": "captioner", "retrieval": "filter"}
    tests = [(test, test, config.tests[test]) for test in TESTS if test in config.tests]
    tests += [("validation", "caption", config.validation)] if config.validation else []
    for name, test, file in tests:
        model, scores = finetuned_model(config, number, models[test]), str(scores_file(config, number, name))
        step_name = f"{number}-validate" if name == "validation" else f"{number}-evaluate-finetuned-{test}"
        yield _test(config, step_name, test, file, model, scores)


def _test(
    config: BootstrapConfig, name: str, test: str, annotations: str, model: str, scores: str | None = None
) -> Step:
    fixed = {"task": test, "annotations": annotations, "model": model} | ({"scores": scores} if scores else {})
    options, _ = _resolve_section(config, "evaluate", fixed)
    if scores:
        options += ["--set", f"scores={scores}"]
    return Step(Command(name, ("evaluate", test, annotations, "--model", model, *options)), f"evaluate-{test}")


def _round_folder(config: BootstrapConfig, number: int) -> Path:
    return Path(config.out) / f"round-{number}"


def _resolve_section(config: BootstrapConfig, section: str, fixed: Mapping[str, Any]) -> tuple[list[str], Any]:
    """Return the options that pass a section's settings to its command, and the command's config.

    `fixed` holds the settings that the loop sets; a section that sets one of them raises ValueError.
    """
    settings = section_settings(config, section)
    conflicts = [name for name in settings if name in fixed]
    if conflicts:
        raise ValueError(f"{section}: leave out '{conflicts[0]}'; the loop sets it.")
    try:
        command_config = resolve(_config_class(section), None, (), {**settings, **fixed})
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from None
    return ["--config", str(settings_file(config, section))] if settings else [], command_config


def _config_class(section: str) -> type[Any]:
    from blipcore.evaluation import EvaluateRun
    from blipcore.train.runs import FinetuneRun, PretrainRun

    classes: dict[str, type[Any]] = {
        "download": DownloadConfig,
        "pretrain": PretrainRun,
        "finetune_captioner": FinetuneRun,
        "finetune_filter": FinetuneRun,
        "caption": CaptionConfig,
        "filter": CaptionFilterConfig,
        "evaluate": EvaluateRun,
    }
    return classes[section]


def _images(run: Any, nproc: int, pictures: int | None = None, steps: int | None = None) -> int | None:
    """Return the images that a training run reads, if known: from its steps, or its epochs over `pictures`.

    `steps` is the length of an earlier run of the same kind.
    """
    train = run.train
    steps = train.steps or steps
    if steps:
        return steps * train.batch_size * train.accumulate * nproc
    return pictures and round(train.epochs * pictures)


def _pictures(config: BootstrapConfig) -> int | None:
    """Return the number of pictures from the manifest of the shard set, or else from its first filtering."""
    manifest = read_manifest(to_path(config.data)) or {}
    filtered = CommandRunner(config.logs).named_summary("1-filter") or {}
    return manifest.get("counts", {}).get("ok") or filtered.get("counts", {}).get("pictures")
