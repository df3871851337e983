"""What the README and its pages promise: files and links exist, Python runs (commands: test_command_lines.py)."""

import re
from pathlib import Path

import pytest
from PIL import Image

import capfilt

ROOT = Path(capfilt.__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_of_the_reading_order_exists():
    table = README.split("## Read the code")[1].split("## ")[0]
    named = re.findall(r"`([\w/]+\.(?:py|sh))`", table)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_names_every_page():
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".md", ".sh", ".yaml", "")}
    assert {name for name in pages - {"README.md"} if f"]({name})" not in index} == set()


PYTHON = (ROOT / "examples" / "python.md").read_text(encoding="utf-8")
EXAMPLES = [part.split("```")[0] for part in PYTHON.split("```python\n")[1:]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with what the examples open: models of random weights, and a picture."""
    from blipcore.checkpoints.load import PARTS
    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
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
    exec(compile(code, "python.md", "exec"), {})  # our own file
    assert capsys.readouterr().out.strip()
