"""The pages under examples/ run as written: their commands, in order, in one folder, with tiny models and pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageDraw
from s3 import Store, files, upload
from vlm_server import KEY, VlmServer
from web import Web

import capfilt

EXAMPLES = Path(capfilt.__file__).resolve().parents[1] / "examples"


def blocks(page: str, kind: str) -> list[str]:
    """What a page has between ```kind and ```."""
    return re.findall(rf"```{kind}\n(.*?)```", (EXAMPLES / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.strip().splitlines()]


# In the place of Slurm's: the tasks of an array one after the other, here. The last argument is what they run.
SBATCH = """#!/bin/sh
last=0
for word in "$@"; do case "$word" in --array=0-*) last=${word#--array=0-};; esac; done
export SLURM_ARRAY_TASK_COUNT=$((last + 1))
for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task sh -c "$word" || exit; done
"""

# What the tests of the pages put in the place of what only a lab has. All else runs as written.
SMALL = {
    "capfilt download urls.parquet data": "capfilt download urls.parquet data --allow-private --shard-size 4",
    "capfilt download web.parquet data": "capfilt download web.parquet data --allow-private --shard-size 4",
    "--vision timm:deit_base_patch16_224.fb_in1k ": "",  # from the hub
    "--set train.steps=106250 ": "",
    "--array=0-7": "--array=0-1",
    "--name capfilt ": "--name capfilt --threshold 0.1 ",  # its filter has been trained for two steps,
    "--name kept ": "--name kept --threshold 0.01 ",  # this one not at all
    "--workers 16": "--workers 1",
    "--workers 8": "--workers 1",
}


def small(lines: list[str], **more: str) -> list[str]:
    """The commands with `SMALL` and with `more` put in."""
    for large, little in (SMALL | more).items():
        lines = [line.replace(large, little) for line in lines]
    return lines


def small_configs(folder: Path) -> None:
    """The files of examples/configs with every size scaled down, where the pages look for them."""
    (folder / "examples" / "configs").mkdir(parents=True)
    sizes = {
        "preset": "tiny",
        "image_size": 48,
        "steps": 2,
        "batch_size": 3,
        "queue_size": 12,
        "workers": 0,
        "every": 1,
    }
    sizes |= {"k": 4, "words": "plain", "warmup_steps": 0, "recompute": 0}

    def shrink(content: dict) -> dict:
        return {
            name: shrink(value) if isinstance(value, dict) else sizes.get(name, value)
            for name, value in content.items()
            if name not in ("text", "epochs")
        }

    for file in (EXAMPLES / "configs").glob("*.yaml"):
        content = shrink(yaml.safe_load(file.read_text(encoding="utf-8")))
        if "train" in content:
            content["train"] |= {"steps": 2, "save_every": 1, "log_every": 1, "device": "cpu"}
        if "pretrain" in file.name:
            content["tokenizer"] = "train:80"
        (folder / "examples" / "configs" / file.name).write_text(yaml.safe_dump(content))


def draw_set(folder: Path, name: str, texts: int, prefix: str = "") -> None:
    """An annotation file of six pictures, which lie under images/, with so many texts each."""
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white", "black", "orange")):
        Image.new("RGB", (60, 50), colour).save(folder / "images" / f"{colour}.jpg")
        captions = [f"a {colour} wall seen from {place}" for place in ("afar", "nearby", "below")][:texts]
        rows.append({"image": f"{prefix}{colour}.jpg", "caption": captions if texts > 1 else captions[0]})
        rows[-1]["image_id"] = number
    (folder / name).write_text(json.dumps(rows))


def draw_urls(path: Path, web: Web) -> None:
    rows = [{"url": f"{web.url}/good/{number}.jpg", "caption": f"picture number {number}"} for number in range(11)]
    pq.write_table(pa.Table.from_pylist([*rows, {"url": f"{web.url}/missing/11", "caption": "gone"}]), path)


def run(folder: Path, lines: list[str]) -> None:
    """Each line as a shell runs it, `capfilt` being this checkout's."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    script = f'#!/bin/sh\nexec "{sys.executable}" -m capfilt "$@"\n'
    (bin_ / "capfilt").write_text(script)
    (bin_ / "sbatch").write_text(SBATCH)
    for name in ("capfilt", "sbatch"):
        (bin_ / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for line in lines:
        ended = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{line}\n{ended.stderr[-2000:]}"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with `captioner` and `filter`, of random weights."""
    import torch

    from blipcore.checkpoints.load import PARTS
    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
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
    assert len(server.requests) == 3 * 5 + 1
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_million_urls(models: Path) -> None:
    small_configs(models)
    draw_set(models, "coco.json", texts=1, prefix="images/")
    draw_set(models, "test.json", texts=2, prefix="images/")
    lines = commands("ten_million.md")
    assert len(lines) >= 8
    with Web() as web:
        draw_urls(models / "urls.parquet", web)
        run(models, small(lines, **{"--nproc 8": "--nproc 2"}))
    assert len(list((models / "data" / "filtered" / "kept").glob("*.parquet"))) == 3
    assert len(list((models / "trial" / "captions" / "blip").glob("*.parquet"))) == 1
    assert json.loads((models / "runs" / "kept" / "launches.jsonl").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_recipe_of_the_paper(tmp_path: Path) -> None:
    small_configs(tmp_path)
    for name in ("coco_karpathy_train.json", "vg_caption.json"):
        draw_set(tmp_path, name, texts=1)
    for name in ("coco_karpathy_val.json", "coco_karpathy_test.json", "flickr30k_test.json"):
        draw_set(tmp_path, name, texts=2)
    lines = commands("paper.md")
    assert len(lines) >= 10
    with Web() as web:
        draw_urls(tmp_path / "web.parquet", web)
        run(tmp_path, small(lines, **{"--nproc 8": "--nproc 1"}))
    for name in ("noisy", "captioner", "filter", "bootstrapped", "captioner2", "filter2"):
        assert (tmp_path / "runs" / name / "model" / "model.safetensors").is_file()
