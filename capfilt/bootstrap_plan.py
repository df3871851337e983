"""The plan of a bootstrap run: its config and the commands of each round, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blipcore.io.storage import to_path
from capfilt.caption.stage import CaptionConfig
from capfilt.caption_and_filter import SHARED, CaptionFilterConfig
from capfilt.config import resolve
from capfilt.engine.commands import Step, Steps
from capfilt.ingest.download import DownloadConfig
from capfilt.shards.format import read_manifest

TESTS = ("caption", "retrieval")


SECTIONS = ("download", "pretrain", "finetune_captioner", "finetune_filter", "filter", "evaluate")  # with a command


@dataclass
class BootstrapConfig:
    """`capfilt bootstrap`; a section holds settings of its command, by the names that the command's --config takes."""

    data: str  # shard set of the noisy pairs; with `urls`, where to put it
    human: list[str]  # JSON files of pictures and captions written by people
    out: str  # models, logs, settings, reports
    rounds: int = 1
    urls: str | None = None  # a list to download first
    init: str | None = None  # the model of round 0, in place of one pre-trained on the noise
    human_share: float | None = None  # of every pre-training batch; None: as many as there are pictures
    nproc: int = 1  # processes a training is spread over: one for each GPU
    tests: dict[str, str] = field(default_factory=dict)  # "caption" and "retrieval": JSON files, held out
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
        if unknown := [name for name in self.tests if name not in TESTS]:
            raise ValueError(f"tests knows {' and '.join(TESTS)}, not '{unknown[0]}'.")


@dataclass(frozen=True)
class Part:
    """A step of the loop, and what it works through: `unit` is what its summary's `<unit>_per_second` counts."""

    step: Step
    kind: str  # steps of one kind run at one rate
    unit: str = ""  # none where a step is short beside the others
    amount: int | None = None


def plan(config: BootstrapConfig) -> list[Part]:
    """All steps in order, their settings checked; ValueError names the section of a wrong one."""
    return list(_parts(config))


def missing(config: BootstrapConfig) -> list[str]:
    """The files of its own that the loop would miss, the last of them perhaps after days."""
    needed = dict.fromkeys([config.urls or config.data, *config.human, *config.tests.values()])
    return [path for path in needed if "://" not in path and not Path(path).exists()]


def _parts(config: BootstrapConfig) -> Iterator[Part]:
    if config.urls:
        words, _ = _configured(config, "download", {"urls": config.urls, "out": config.data})
        yield Part(Step("download", ("download", config.urls, config.data, *words)), "download")
    pictures = _pictures(config)
    if not config.init:
        yield _pretrain(config, 0, config.data)
    yield from _evaluate(config, 0)
    for number in range(1, config.rounds + 1):
        name, folder = f"round-{number}", Path(config.out) / f"round-{number}"
        init = model_of(config, number - 1)
        for task, model in (("caption", "captioner"), ("retrieval", "filter")):
            given = {"task": task, "annotations": config.human, "init": init}
            words, run = _configured(config, f"finetune_{model}", given)
            words = ["finetune", task, *config.human, "--init", init, "--out", str(folder / model), *words]
            step = Step(f"{number}-finetune-{model}", (*words, "--nproc", str(config.nproc)))
            before = Steps(Path(config.out) / "logs").summary(Step(f"1-finetune-{model}", ())) or {}
            yield Part(step, f"finetune-{model}", "images", _images(run, config.nproc, steps=before.get("steps")))
        models = {model: str(folder / model / "model") for model in ("captioner", "filter")}
        if both := [setting for setting in config.caption if setting in SHARED]:
            raise ValueError(f"caption: leave out '{both[0]}'; one pass captions and filters, and filter says it.")
        _configured(config, "caption", {"data": config.data, "model": models["captioner"], "name": name})
        given = {"data": config.data, "model": models["filter"], "name": name, "sources": ["web", name]}
        given |= {"captioner.model": models["captioner"], "captioner.name": name}
        words, run = _configured(config, "filter", given)
        speaks = ("--captioner", models["captioner"], "--captioner-name", name)
        sources = ("--sources", "web", "--sources", name)
        words = ("filter", config.data, "--model", models["filter"], *speaks, "--name", name, *sources, *words)
        yield Part(Step(f"{number}-filter", words), "filter", "pictures", pictures)
        filtered = [str(Path(run.out or config.data) / "filtered" / f"round-{n}") for n in range(number, 0, -1)]
        compare = [word for other in filtered[1:] for word in ("--compare", other)]
        words = ("report", filtered[0], *compare, "--out", str(folder / "report.html"))
        yield Part(Step(f"{number}-report", words), "report")
        yield _pretrain(config, number, filtered[0])
        yield from _evaluate(config, number)


def model_of(config: BootstrapConfig, number: int) -> str:
    """The model that round `number` ends with."""
    if number == 0 and config.init:
        return config.init
    return str(Path(config.out) / f"round-{number}" / "pretrain" / "model")


def _pretrain(config: BootstrapConfig, number: int, dataset: str) -> Part:
    share = config.human_share
    data = [dataset, *config.human]
    if share is not None:
        data = [f"{dataset}={1 - share:g}", *(f"{path}={share / len(config.human):g}" for path in config.human)]
    words, run = _configured(config, "pretrain", {"data": data})
    folder = str(Path(config.out) / f"round-{number}" / "pretrain")
    step = Step(f"{number}-pretrain", ("pretrain", *data, "--out", folder, *words, "--nproc", str(config.nproc)))
    return Part(step, "pretrain", "images", _images(run, config.nproc, _pictures(config)))


def _evaluate(config: BootstrapConfig, number: int) -> Iterator[Part]:
    for test in TESTS:
        if test in config.tests:
            given = {"task": test, "annotations": config.tests[test], "model": model_of(config, number)}
            words, _ = _configured(config, "evaluate", given)
            words = ("evaluate", test, config.tests[test], "--model", given["model"], *words)
            yield Part(Step(f"{number}-evaluate-{test}", words), f"evaluate-{test}")


def _configured(config: BootstrapConfig, section: str, given: Mapping[str, Any]) -> tuple[list[str], Any]:
    """The words that pass a section's settings on, and all that the command will go by."""
    settings = _settings(config, section)
    if doubled := [name for name in settings if name in given]:
        raise ValueError(f"{section}: leave out '{doubled[0]}'; the loop sets it.")
    try:
        run = resolve(_config_of(section), None, (), {**settings, **given})
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from None
    return ["--config", str(_settings_file(config, section))] if settings else [], run


def _settings(config: BootstrapConfig, section: str) -> dict[str, Any]:
    """What a section gives to its command; the filter's captions too."""
    if section == "filter" and config.caption:
        return {**config.filter, "captioner": config.caption}
    return getattr(config, section)


def _settings_file(config: BootstrapConfig, section: str) -> Path:
    return Path(config.out) / "configs" / f"{section}.yaml"


def _config_of(section: str) -> type:
    from blipcore.evaluation import EvaluateRun
    from blipcore.train.runs import FinetuneRun, PretrainRun

    finetuned = {"finetune_captioner": FinetuneRun, "finetune_filter": FinetuneRun}
    trained = {"pretrain": PretrainRun, **finetuned, "evaluate": EvaluateRun}
    return {"download": DownloadConfig, "caption": CaptionConfig, "filter": CaptionFilterConfig, **trained}[section]


def _images(run: Any, nproc: int, pictures: int | None = None, steps: int | None = None) -> int | None:
    """Pictures that a training reads: its length is given in steps, in epochs of a known number, or was met before."""
    train = run.train
    if steps := train.steps or steps:
        return steps * train.batch_size * train.accumulate * nproc
    return pictures and round(train.epochs * pictures)


def _pictures(config: BootstrapConfig) -> int | None:
    """Pictures of the shard set: its manifest counts them, or, in a set of others, the first filtering did."""
    manifest = read_manifest(to_path(config.data)) or {}
    filtered = Steps(Path(config.out) / "logs").summary(Step("1-filter", ())) or {}
    return manifest.get("counts", {}).get("ok") or filtered.get("counts", {}).get("pictures")
