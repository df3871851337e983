"""Options of every command: names, help, panels, shown defaults, and the config that they set."""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner, Result

from capfilt import options
from capfilt.cli import app

# A new option is a decision: it needs an entry here.
RUN_OPTIONS = "--backend --batch-size --device --dtype --engine --rank --workers --world-size"
TRAIN_OPTIONS = "--batch-size --continue --device --dtype --epochs --lr --nproc --seed --steps --workers"
OPTIONS = {
    "download": "--allow-private --caption-col --columns --config --duplicates --encoding --image-size --json "
    "--keep-columns --min-success --no-header --quoting --retries --retry-failed --set --shard-size --split --threads "
    "--url-col --workers",
    "pack": "--annotations --caption-col --columns --config --duplicates --encoding --image-col --image-size --json "
    "--keep-columns --kind --min-success --name --no-header --quoting --set --shard-size --split --texts --workers",
    "inspect": "--annotations --caption-col --columns --encoding --image-col --json --kind --no-header --quoting "
    "--split --url-col",
    "caption": "--base-url --config --json --mode --model --name --num-captions --numerics --out --prompt --seed --set "
    f"--tokenizer {RUN_OPTIONS}",
    "filter": "--base-url --best-of --captioner --captioner-name --clip --config --explain --json --judge --labels "
    "--model --name --numerics --out --repair --scorer --scores --sentences --set --sources --target --threshold "
    f"--tokenizer --top-fraction {RUN_OPTIONS}",
    "pretrain": "--config --image-root --init --json --mixture --numerics --out --preset --set --text --tokenizer "
    f"--vision {TRAIN_OPTIONS}",
    "finetune": "--config --image-root --image-size --init --json --labels --numerics --out --set --tokenizer "
    f"{TRAIN_OPTIONS}",
    "evaluate": "--answers --base-url --batch-size --clip --config --device --dtype --image-root --image-size --json "
    "--judge --model --numerics --results --set --tokenizer",
    "convert": "--image-size --json --numerics --set --task --to --tokenizer",
    "report": "--compare --json --label --out --pictures",
    "label": "--host --json --number --order --out --port --seed",
    "trial": "--config --dry-run --finetune-steps --human --json --out --seeds --set --steps --test",
    "doctor": "--json",
    "select": "--duplicates --json --like --name --per-cluster --set --top-fraction",
    "export": "--decontaminate --format --json --licence --mixture --workers",
    "fuse": "--base-url --config --json --model --name --out --prompt --rank --set --source --workers --world-size",
    "bootstrap": "--dry-run --json --rounds --set",
    "demo": "--json --lang --out --quick --rounds --rows --scale --seed --table",
}
COMMANDS = get_command(app).commands


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_kind_completes_all_kinds_of_inputs() -> None:
    from capfilt.ingest.inputs.input import KINDS

    assert options.KINDS == KINDS


def test_the_option_names_of_every_command_are_frozen() -> None:
    names = {
        command: {name for parameter in COMMANDS[command].params for name in parameter.opts if name.startswith("--")}
        for command in COMMANDS
    }
    assert names == {command: set(line.split()) for command, line in OPTIONS.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_and_a_panel(command: str) -> None:
    panels = {options.READ, options.DOWNLOAD, options.MODEL, options.CAPTION, options.DECIDE, options.TRAIN}
    panels |= {options.RUN, options.OUTPUT, options.SETTINGS}
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
        if parameter.opts[0].startswith("--"):
            assert parameter.rich_help_panel in panels, parameter.name


def default(cls: Any, name: str) -> Any:
    """Return the default of a config's field; dots reach into nested fields."""
    first, *rest = name.split(".")
    field = {field.name: field for field in dataclasses.fields(cls)}[first]
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for part in rest:
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_help_shows_the_defaults_of_the_config(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []

    def record(context: typer.Context, cls: type, fields: dict[str, str | None] | None = None) -> None:
        configs.append((cls, fields or {}))
        raise typer.Exit

    for module in ("cli", "cli_models", "cli_sets"):
        monkeypatch.setattr(f"capfilt.{module}.read_settings", record)
    result = run(*shlex.split(COMMANDS[command].epilog.removeprefix("Example: capfilt ")))
    assert result.exit_code == 0, result.output
    [(cls, fields)] = configs
    for parameter in COMMANDS[command].params:
        shown = re.search(r"\[default: (.*)\]\[/dim\]", parameter.help)
        if shown:
            value = default(cls, fields.get(parameter.name, parameter.name))
            # A default that is worked out later is described in words.
            assert shown[1] == str(value) or value in (None, "", 0, []), parameter.name


@dataclass
class Nested:
    lr: float = 1e-3
    steps: int = 5


@dataclass
class Settings:
    task: str
    sources: list[str] = field(default_factory=lambda: ["all"])
    train: Nested = field(default_factory=Nested)


def read(*arguments: str) -> Settings:
    """Return the settings of a command with these arguments."""
    settings = []
    command = typer.Typer()

    @command.command()
    def train(
        context: typer.Context,
        task: options.FinetuneArgument,
        lr: options.FinetuneRate = None,
        sources: options.Sources = None,
        out: options.Out = None,
        config: options.Config = None,
        sets: options.Sets = None,
        as_json: options.Json = False,
    ) -> None:
        settings.append(options.read_settings(context, Settings, {"lr": "train.lr", "out": None}))

    result = CliRunner().invoke(command, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return settings[0]


def test_options_set_the_fields_of_a_config(tmp_path: Path) -> None:
    assert read("vqa") == Settings("vqa")
    assert read("nlvr", "--lr", "2", "--out", "x", "--json") == Settings("nlvr", train=Nested(lr=2.0))
    (tmp_path / "a.yaml").write_text("{sources: [web], train: {lr: 3, steps: 7}}")
    config = ["--config", str(tmp_path / "a.yaml")]
    assert read("vqa", *config) == Settings("vqa", ["web"], Nested(3.0, 7))
    assert read("vqa", *config, "--set", "train.lr=4", "--sources", "a", "--sources", "b") == Settings(
        "vqa", ["a", "b"], Nested(4.0, 7)
    )
    assert read("vqa", *config, "--set", "train.lr=4", "--lr", "5").train.lr == 5
    with pytest.raises(ValueError, match="Unknown setting 'speed'"):
        read("vqa", "--set", "speed=1")
