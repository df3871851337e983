"""The pages under examples/ run as written: their commands, in order, in one folder, with tiny models and pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import capfilt

EXAMPLES = Path(capfilt.__file__).resolve().parents[1] / "examples"


def commands(page: str) -> list[str]:
    text = (EXAMPLES / page).read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.strip().splitlines()]


def run(folder: Path, lines: list[str]) -> None:
    """Each line as a shell runs it, `capfilt` being this checkout's."""
    bin_ = folder / "bin"
    bin_.mkdir()
    script = f'#!/bin/sh\nexec "{sys.executable}" -m capfilt "$@"\n'
    (bin_ / "capfilt").write_text(script)
    (bin_ / "capfilt").chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for line in lines:
        ended = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{line}\n{ended.stderr[-2000:]}"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with `captioner` and `filter`, of random weights."""
    import torch

    from blipcore.model.blip import Blip
    from blipcore.model.convert import PARTS, save_model
    from blipcore.model.tokenizer import Tokenizer
    from blipcore.train.runs import sizes

    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a picture of a red dog"] * 3, vocab_size=100)
    model = Blip(sizes("tiny", {}, len(tokenizer)))
    for name, task in (("captioner", "caption"), ("filter", "retrieval")):
        save_model(tmp_path / name, model.only(*PARTS[task]), tokenizer)
    return tmp_path


def test_a_folder_of_pictures(models: Path) -> None:
    photos = models / "photos"
    photos.mkdir()
    for number in range(5):
        image = Image.new("RGB", (120, 90), "navy")
        ImageDraw.Draw(image).ellipse((10 * number, 10, 10 * number + 40, 50), fill="orange")
        image.save(photos / f"IMG {number}.jpg")
    (photos / "IMG 0.txt").write_text("the orange ball")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    lines = commands("photos.md")
    assert len(lines) >= 6
    run(models, lines)
    assert (models / "report.html").stat().st_size > 10_000
    assert list((models / "pairs").glob("*.parquet"))
