"""The pages under examples/ run as written: their commands, in order, in one folder, with tiny models and pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

import capfilt

sys.path.insert(0, str(Path(__file__).parent / "capfilt"))
from s3 import Store, files, upload
from vlm_server import KEY, VlmServer

EXAMPLES = Path(capfilt.__file__).resolve().parents[1] / "examples"


def blocks(page: str, kind: str) -> list[str]:
    """What a page has between ```kind and ```."""
    return re.findall(rf"```{kind}\n(.*?)```", (EXAMPLES / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.strip().splitlines()]


def run(folder: Path, lines: list[str]) -> None:
    """Each line as a shell runs it, `capfilt` being this checkout's."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
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


@pytest.fixture
def photos(models: Path) -> Path:
    """The folder `photos` of five pictures, beside the models."""
    folder = models / "photos"
    folder.mkdir()
    for number in range(5):
        image = Image.new("RGB", (120, 90), "navy")
        ImageDraw.Draw(image).ellipse((10 * number, 10, 10 * number + 40, 50), fill="orange")
        image.save(folder / f"IMG {number}.jpg")
    return folder


def test_a_folder_of_pictures(models: Path, photos: Path) -> None:
    (photos / "IMG 0.txt").write_text("the orange ball")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    lines = commands("photos.md")
    assert len(lines) >= 6
    run(models, lines)
    assert (models / "report.html").stat().st_size > 10_000
    assert list((models / "pairs").glob("*.parquet"))


@pytest.mark.slow  # five commands, each an interpreter that brings in torch
def test_a_vlm_server(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="openai: captioners need the extra openai")
    server = VlmServer("Qwen/Qwen2.5-VL-7B-Instruct")
    server.trouble = lambda request: "sorry" if server.requests[8:9] == [request] else None
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(models / "cache"))
    (settings,) = blocks("vlm.md", "yaml")
    (models / "vlm.yaml").write_text(settings)
    run(models, commands("vlm.md"))
    server.close()
    assert len(server.requests) == 3 * 5 + 3
    (table,) = (models / "data/captions/qwen").glob("*.parquet")
    rows = pq.read_table(table).to_pylist()
    assert len(rows) == 15 and all((row["text"] is None) == (row["error"] is not None) for row in rows)
    assert [row["error"].partition(":")[0] for row in rows if row["error"]] == ["refused"]
    judged = pq.read_table(models / "data/filtered/best/00000.parquet")
    assert set(judged["source"].to_pylist()) == {"web", "qwen"}
    assert json.loads((models / "data/filtered/best/manifest.json").read_text())["config"]["best"] == 1
    assert (models / "report.html").stat().st_size > 10_000


@pytest.mark.slow  # Ray starts for each command
@pytest.mark.timeout(600)
def test_a_ray_cluster_with_s3(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="--engine ray needs the extra ray")
    pytest.importorskip("s3fs", reason="S3 needs the extra s3")
    pytest.importorskip("moto", reason="the S3 server is moto's")
    store = Store()
    for name, value in store.variables.items():
        monkeypatch.setenv(name, value)
    pack, *others = commands("ray_s3.md")
    run(models, [pack])
    upload(models / "data", "s3://pictures/data")
    run(models, others)
    there = set(files("s3://pictures/data"))
    store.close()
    assert {"captions/blip/00000.parquet", "filtered/r1/00000.parquet", "filtered/r2/00000.parquet"} <= there
    assert (models / "report.html").is_file()
