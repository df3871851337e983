"""Every file of examples/configs begins with commands that parse, and sets existing settings of the first one."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import capfilt
from blipcore import evaluation
from blipcore.train import runs
from capfilt.cli import app

FOLDER = Path(capfilt.__file__).resolve().parents[1] / "examples" / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def header(path: Path) -> str:
    """Return the comment at the top of a config."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line[1:].removeprefix(" ") for line in lines)


def commands(path: Path) -> list[list[str]]:
    """Return the `capfilt` commands of the header, without `torchrun`."""
    text = header(path).replace("\\\n", " ")
    lines = re.findall(r"^  (?:torchrun .*-m )?(capfilt .*)$", text, flags=re.MULTILINE)
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def settings(monkeypatch) -> list[Any]:
    """Collect the configs that the commands build, and run none."""
    configs: list[Any] = []
    for module, name in ((runs, "pretrain"), (runs, "finetune"), (evaluation, "evaluate")):
        monkeypatch.setattr(module, name, lambda run, *out: configs.append(run) or {})
    monkeypatch.setattr("blipcore.train.launch.launch", lambda nproc, work, *args: work(*args))
    return configs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_commands_parse_and_keys_are_settings(path, settings, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    lines = commands(path)
    readers = [command for command in lines if f"examples/configs/{path.name}" in command]
    assert lines and readers == lines[:1], "only the first command reads it"
    for command in lines:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content, "no settings"
    for name, value in flat(content):
        run: Any = settings[0]
        for part in name.split("."):
            run = run[part] if isinstance(run, dict) else getattr(run, part)
        assert run == value, name
    if isinstance(settings[0], runs.PretrainRun):
        runs.model_config(settings[0].preset, settings[0].model, 30524)


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the settings by dotted names."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_header_states_hardware_time_and_result(path):
    for word in ("Hardware", "Time", "Expect"):
        assert re.search(rf"\b{word}\b", header(path)), f"{path.name} does not say: {word}"


def test_every_task_and_size_has_a_config():
    names = {path.stem for path in CONFIGS}
    sizes = [f"{task}_vit_{size}" for task in ("pretrain", "caption_coco", "retrieval_coco") for size in "bl"]
    others = {"vqa_vit_b", "nlvr_vit_b", "evaluate_nocaps", "evaluate_caption_coco", "evaluate_retrieval_flickr30k"}
    assert {*sizes, *others} <= names
