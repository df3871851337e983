"""What the README promises: the files it names exist, its commands and options are real, its Python runs."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

import capfilt
from capfilt.cli import app

ROOT = Path(capfilt.__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STORY = (ROOT / "examples" / "bootstrap.sh").read_text(encoding="utf-8").replace("\\\n", " ")


def test_every_file_of_the_reading_order_exists():
    table = README.split("## Read the code")[1].split("## ")[0]
    named = re.findall(r"`([\w/]+\.(?:py|sh))`", table)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for line in STORY.splitlines()]
    return re.findall(r"`(capfilt [a-z][^`]*)`", README) + [line for line in lines if line.startswith("capfilt ")]


@pytest.mark.parametrize("line", commands())
def test_commands_and_options_exist(line):
    words = shlex.split(line)[1:]
    command = get_command(app).commands[words[0]]
    known = {option for parameter in command.params for option in parameter.opts}
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known | {"--help"}]
    assert unknown == []


def test_the_settings_of_the_story_exist():
    from blipcore.train.runs import FinetuneRun, PretrainRun
    from capfilt.config import resolve

    for line in (line for line in STORY.splitlines() if line.startswith("capfilt ") and "--set" in line):
        words = shlex.split(line)
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        if words[1] == "pretrain":
            resolve(PretrainRun, None, sets, {"data": ["data"]})
        elif words[1] == "finetune":
            resolve(FinetuneRun, None, sets, {"task": words[2], "annotations": ["a.json"], "init": "m"})


EXAMPLES = [part.split("```")[0] for part in README.split("```python\n")[1:]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with what the examples open: models of random weights, and a picture."""
    from blipcore.model.blip import Blip
    from blipcore.model.convert import PARTS, save_model
    from blipcore.model.tokenizer import Tokenizer
    from blipcore.train.runs import sizes

    folder = tmp_path_factory.mktemp("readme")
    tokenizer = Tokenizer.train(["a picture of a dog"] * 3, vocab_size=100)
    model = Blip(sizes("tiny", {}, len(tokenizer)))
    for name, task in (("captioner", "caption"), ("filter", "retrieval"), ("vqa", "vqa")):
        save_model(folder / "runs" / name / "model", model.only(*PARTS[task]), tokenizer)
    Image.new("RGB", (60, 40), "red").save(folder / "picture.jpg")
    return folder


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_python_examples_run(code, models, monkeypatch, capsys):
    monkeypatch.chdir(models)
    exec(compile(code, "README.md", "exec"), {})  # our own file
    assert capsys.readouterr().out.strip()
