"""The commands of the README and of pages under examples/ run as written, with tiny models and a few pictures."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import public_tests
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_vlm
import yaml
from in_process import run_in_process
from PIL import Image, ImageDraw
from s3 import S3Server, remote_contents, upload
from typer.testing import CliRunner
from vlm_server import KEY, VlmServer
from web import Web

import capfilt
from capfilt.cli import app

EXAMPLES = Path(capfilt.__file__).resolve().parents[1] / "examples"


def code_blocks(page: str, kind: str) -> list[str]:
    """Return the blocks of a page between ```kind and ```."""
    return re.findall(rf"```{kind}\n(.*?)```", (EXAMPLES / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the lines of a page's sh blocks."""
    return [line for block in code_blocks(page, "sh") for line in block.strip().splitlines()]


# A stand-in for Slurm's sbatch: runs the tasks of an array one after the other. The last argument is the command.
SBATCH = """#!/bin/sh
last=0
for word in "$@"; do case "$word" in --array=0-*) last=${word#--array=0-};; esac; done
export SLURM_ARRAY_TASK_COUNT=$((last + 1))
for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task sh -c "$word" || exit; done
"""

# Replacements for what needs a network, many machines or trained models. Everything else runs as written.
REPLACEMENTS = {
    "capfilt download urls.parquet data": "capfilt download urls.parquet data --allow-private --shard-size 4",
    "capfilt download web.parquet data": "capfilt download web.parquet data --allow-private --shard-size 4",
    # This one needs the hub.
    "--vision timm:deit_base_patch16_224.fb_in1k ": "",
    "--set train.steps=106250 ": "",
    "--array=0-7": "--array=0-1",
    # Filters with almost no training keep nothing at 0.5.
    "--name capfilt ": "--name capfilt --threshold 0.1 ",
    "--name kept ": "--name kept --threshold 0.01 ",
    "--workers 16": "--workers 1",
    "--workers 8": "--workers 1",
}


def replace_in(lines: list[str], **more: str) -> list[str]:
    """Return the commands after `REPLACEMENTS` and `more`."""
    for old, new in (REPLACEMENTS | more).items():
        lines = [line.replace(old, new) for line in lines]
    return lines


def write_tiny_configs(folder: Path) -> None:
    """Write the files of examples/configs with every size scaled down to the path that the pages use."""
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
    """Write six pictures under images/ and their annotation file, with `texts` texts each."""
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white", "black", "orange")):
        Image.new("RGB", (60, 50), colour).save(folder / "images" / f"{colour}.jpg")
        captions = [f"a {colour} wall seen from {side}" for side in ("afar", "nearby", "below")][:texts]
        rows.append({"image": f"{prefix}{colour}.jpg", "caption": captions if texts > 1 else captions[0]})
        rows[-1]["image_id"] = number
    (folder / name).write_text(json.dumps(rows))


def write_urls(path: Path, web: Web) -> None:
    """Write a table of eleven URLs of pictures and a dead one."""
    rows = [{"url": f"{web.url}/good/{number}.jpg", "caption": f"picture number {number}"} for number in range(11)]
    pq.write_table(pa.Table.from_pylist([*rows, {"url": f"{web.url}/missing/11", "caption": "gone"}]), path)


def run(folder: Path, lines: list[str]) -> None:
    """Run each line in a shell, where `capfilt` is that of this checkout."""
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
        result = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stderr[-2000:]}"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return a folder with the models `captioner` and `filter`, of random weights."""
    import torch

    from blipcore.checkpoints.load import TASK_PARTS
    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
    from blipcore.model.tokenizer import Tokenizer
    from blipcore.train.runs import model_config

    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a picture of a red dog"] * 3, vocab_size=100)
    model = Blip(model_config("tiny", {}, len(tokenizer)))
    for name, task in (("captioner", "caption"), ("filter", "retrieval")):
        save_model(tmp_path / name, model.select_parts(*TASK_PARTS[task]), tokenizer)
    return tmp_path


@pytest.fixture
def photos(models: Path) -> Path:
    """Return the folder `photos` with five pictures, next to the models."""
    folder = models / "photos"
    folder.mkdir()
    for number in range(5):
        image = Image.new("RGB", (120, 90), "navy")
        ImageDraw.Draw(image).ellipse((10 * number, 10, 10 * number + 40, 50), fill="orange")
        image.save(folder / f"IMG {number}.jpg")
    return folder


def test_the_readme(models: Path, photos: Path) -> None:
    (photos / "IMG 0.txt").write_text("the orange ball")
    (models / "Salesforce").mkdir()
    (models / "captioner").rename(models / "Salesforce" / "blip-image-captioning-base")
    (models / "filter").rename(models / "Salesforce" / "blip-itm-base-coco")
    lines = [line for line in commands("../README.md") if line.startswith("capfilt ")]
    assert len(lines) == 5
    run(models, replace_in(lines))
    assert (models / "report.html").stat().st_size > 10_000
    assert list((models / "pairs").glob("*.parquet"))


def test_a_folder_of_pictures(models: Path, photos: Path) -> None:
    (photos / "IMG 0.txt").write_text("the orange ball")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    lines = commands("photos.md")
    assert len(lines) >= 6
    run(models, lines)
    assert (models / "report.html").stat().st_size > 10_000
    assert list((models / "pairs").glob("*.parquet"))


def test_a_scorer_of_ones_own(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "IMG 0.txt").write_text("the orange ball")
    (photos / "IMG 1.txt").write_text("a ball")
    (code,) = code_blocks("scorers.md", "python")
    (models / "own.py").write_text(code)
    monkeypatch.chdir(models)
    for line in commands("scorers.md"):
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    tables = {
        name: pq.read_table(models / f"data/filtered/{name}/00000.parquet") for name in ("sharp", "long", "twice")
    }
    web = [row for row in tables["long"].to_pylist() if row["source"] == "web" and row["text"]]
    assert [row["words"] for row in web] == [3, 2]
    assert {"sharpness", "words"} <= set(tables["sharp"].column_names)
    assert {"itm2", "itc2"} <= set(tables["twice"].column_names)
    surest = pq.read_table(models / "data/filtered/surest/00000.parquet").to_pylist()
    captions = [row for row in surest if row["source"] == "blip" and row["confidence"] is not None]
    kept = {row["key"]: row["confidence"] for row in captions if row["keep"]}
    assert kept and all(row["confidence"] <= kept.get(row["key"], 0) for row in captions)
    assert {"lm", "pmi"} <= set(pq.read_table(models / "data/filtered/read/00000.parquet").column_names)
    assert len(list((models / "data/scores").iterdir())) == 4


def invoke(monkeypatch: pytest.MonkeyPatch, folder: Path, lines: list[str]) -> None:
    """Run each line in this process."""
    monkeypatch.chdir(folder)
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_long_captions(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (texts,) = code_blocks("long_captions.md", "json")
    (models / "recaptions.jsonl").write_text(texts)
    lines = commands("long_captions.md")
    assert len(lines) == 5
    invoke(monkeypatch, models, lines)
    rows = pq.read_table(models / "data/filtered/repaired/00000.parquet").to_pylist()
    sentences = [row["sentences"] for row in rows if row["source"] == "vlm" and row["text"]]
    assert [len(of_text) for of_text in sentences] == [2, 3, 2]
    assert (models / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_labels(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels are made here instead of by hand: right for every second of 60 pictures with two captions each."""
    (models / "photos").mkdir()
    for number in range(60):
        Image.new("RGB", (40, 40), (4 * number, 90, 250 - 4 * number)).save(models / "photos" / f"{number:02d}.jpg")
        (models / "photos" / f"{number:02d}.txt").write_text("a ball " + "on a wall " * (number % 5))
    words = "capfilt caption data --model captioner --set generate.min_length=5 --set generate.max_length=8"
    made = ["capfilt pack photos data", words, "capfilt filter data --model filter --name r1 --threshold 0"]
    invoke(monkeypatch, models, made)
    label, *lines = commands("labels.md")
    assert label.startswith("capfilt label data/filtered/r1 ")
    rows = pq.read_table(models / "data/filtered/r1/00000.parquet").select(["key", "source", "index"]).to_pylist()
    text = "".join(f"{row['key']},{row['source']},{row['index']},{n // 2 % 2}\n" for n, row in enumerate(rows))
    (models / "labels.csv").write_text("key,source,index,match\n" + text)
    # random weights reach no high precision
    invoke(monkeypatch, models, replace_in(lines, **{"precision=0.8": "recall=0.8"}))
    for name in ("mixed", "even", "half", "taught"):
        manifest = json.loads((models / "data/filtered" / name / "manifest.json").read_text())
        assert manifest["config"]["score"] == "mix" and manifest["computed"]["mix"]["measured"]["labels"] > 100
        assert ("strata" in manifest["config"]) == (name in ("even", "half"))
    assert (models / "runs/labelled/labels.parquet").is_file()


def test_near_misses(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blipcore.checkpoints.load import load_model
    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
    from blipcore.train.runs import model_config

    _, tokenizer = load_model(models / "filter")
    save_model(models / "pretrained", Blip(model_config("tiny", {}, len(tokenizer))), tokenizer)
    rows = []
    for number, colour in enumerate(("red", "blue", "green", "white", "black", "orange")):
        Image.new("RGB", (32, 32), colour).save(models / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": [f"a {colour} ball", f"the {colour} ball"]})
    (models / "human.json").write_text(json.dumps(rows))
    (judged,) = code_blocks("near_misses.md", "json")
    (models / "judged.jsonl").write_text(judged)
    invoke(monkeypatch, models, ["capfilt pack photos data", "capfilt caption data --model captioner"])
    few = {"--steps 400": "--steps 1 --batch-size 4 --set retrieval.queue_size=8"}
    invoke(monkeypatch, models, replace_in(commands("near_misses.md"), **few))
    made = pq.read_table(models / "filter" / "near_misses.parquet").to_pylist()
    assert {row["text"] for row in made if row["origin"] == "reference"} >= {"a red ball", "the blue ball"}
    assert any(not row["match"] for row in made)
    assert (models / "taught" / "model").is_dir()


def test_merged_texts(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="fuse needs the extra openai")
    for number in range(4):
        (photos / f"IMG {number}.txt").write_text(f"ball number {number} of Oslo")
    server = VlmServer("Qwen/Qwen3-8B")
    server.reply = lambda request: "A ball in Paris." if "number 3" in request["prompt"] else "The ball of Oslo."
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(models / "cache"))
    (settings,) = code_blocks("fuse.md", "yaml")
    (models / "fuse.yaml").write_text(settings)
    # a captioner of random weights may write no word
    words = "capfilt caption data --set generate.min_length=5 "
    invoke(monkeypatch, models, replace_in(commands("fuse.md"), **{"capfilt caption data ": words}))
    server.close()
    rows = pq.read_table(models / "data/captions/fused/00000.parquet").to_pylist()
    reasons = [(row["error"] or "").partition(" ")[0] for row in rows]
    assert reasons == ["", "", "", "invented_name:", "no_web_text"]
    filtered = pq.read_table(models / "data/filtered/r1/00000.parquet").to_pylist()
    assert [row["text"] for row in filtered if row["source"] == "fused" and row["text"]] == ["The ball of Oslo."] * 3
    assert (models / "data/captions/fused_short/manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_set(models, "human.json", texts=2, prefix="images/")
    draw_set(models, "val.json", texts=2, prefix="images/")
    made = "capfilt filter data --model filter --captioner captioner --threshold 0"
    made += " --set captioner.generate.min_length=5"  # a captioner of random weights may write no word
    invoke(monkeypatch, models, ["capfilt pack photos data", f"{made} --name r1", f"{made} --name r2 --best-of itc"])
    (settings,) = code_blocks("trial.md", "yaml")
    (models / "trial.yaml").write_text(settings.replace("image_size: 96", "image_size: 32").replace("64", "4"))
    small = {"--seeds 3": "--seeds 2", "--steps 2000": "--steps 1", "--finetune-steps 500": "--finetune-steps 1"}
    small["--config trial.yaml"] = "--config trial.yaml --set evaluate.k=2"
    for section, task in (("pretrain", "task"), ("finetune_filter", "retrieval")):
        small["--config trial.yaml"] += f" --set {section}.{task}.queue_size=8"
    names = run_in_process(monkeypatch)
    lines = replace_in(commands("trial.md"), **small)
    assert [line.endswith("--dry-run") for line in lines] == [True, False, False]
    invoke(monkeypatch, models, lines)
    assert len(names) == 2 * 2 * 5 + 2 * 2 * 2
    assert "95% interval" in (models / "trials/r2/result.html").read_text()
    assert len(json.loads((models / "trials/control/result.json").read_text())["differences"]) == 1


@pytest.mark.slow
def test_mixtures_and_formats(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        (photos / f"IMG {number}.txt").write_text("the orange ball")
    lines = commands("mixtures.md")
    assert len(lines) == 8
    invoke(monkeypatch, models, lines)
    assert "| web | 50.0% |" in (models / "mixed" / "README.md").read_text(encoding="utf-8")
    row = pq.read_table(models / "table" / "00000.parquet").to_pylist()[0]
    assert sum(row["probabilities"]) == pytest.approx(1) and len(row["captions"]) == len(row["probabilities"])
    assert len(list((models / "files" / "images").iterdir())) == 10
    assert (models / "bench" / "test" / "0.tar").is_file()


@pytest.mark.slow
def test_vectors(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="select needs the extra vectors")
    (models / "val").mkdir()
    Image.new("RGB", (60, 60), "red").save(models / "val" / "0.jpg")
    (models / "new.csv").write_text("key,caption\n" + "".join(f"00000000{n},an orange ball\n" for n in range(5)))
    lines = commands("vectors.md")
    assert len(lines) == 10
    invoke(monkeypatch, models, lines)
    filtered = models / "data" / "filtered"
    rows = pq.read_table(filtered / "like_val" / "00000.parquet").to_pylist()
    assert len({row["key"] for row in rows if row["keep"]}) == 1
    assert {row["itm"] for row in pq.read_table(filtered / "prescreened" / "00000.parquet").to_pylist()} == {None}


@pytest.mark.slow
def test_a_vlm_server(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="openai: captioners need the extra openai")
    server = VlmServer("Qwen/Qwen2.5-VL-7B-Instruct")
    server.trouble = lambda request: "sorry" if server.requests[8:9] == [request] else None
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(models / "cache"))
    (settings,) = code_blocks("vlm.md", "yaml")
    (models / "vlm.yaml").write_text(settings)
    run(models, commands("vlm.md"))
    server.close()
    assert len(server.requests) == 3 * 5 + 1
    (table,) = (models / "data/captions/qwen").glob("*.parquet")
    rows = pq.read_table(table).to_pylist()
    assert len(rows) == 15 and all((row["text"] is None) == (row["error"] is not None) for row in rows)
    assert [row["error"].partition(":")[0] for row in rows if row["error"]] == ["refused"]
    pairs = pq.read_table(models / "data/filtered/best/00000.parquet")
    assert set(pairs["source"].to_pylist()) == {"web", "qwen"}
    assert json.loads((models / "data/filtered/best/manifest.json").read_text())["config"]["best"] == 1
    assert (models / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_judge(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="openai: judges need the extra openai")
    server = VlmServer("Qwen/Qwen2.5-VL-7B-Instruct")
    server.tops = lambda request: [{"Yes": -0.1 - len(request["prompt"]) / 99, "No": -1.0}]
    rubric = '{"match": 4, "specificity": 3, "fluency": 5}'
    server.reply = lambda request: rubric if "axis" in request["prompt"] else None
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(models / "cache"))
    monkeypatch.setattr("tiny_vlm.WORDS", [*tiny_vlm.WORDS, "yes", "no"])
    tiny_vlm.save_tiny_vlm(models / "vlm")
    for step in ("replace_att", "swap_att"):
        public_tests.sugarcrepe(models / "coco/val2017", 6)
        (models / "sugar-crepe/data").mkdir(parents=True, exist_ok=True)
        shutil.move(models / "coco/val2017/replace_att.json", models / f"sugar-crepe/data/{step}.json")
    public_tests.aro(models / "aro/images", 6)
    shutil.move(models / "aro/images/visual_genome_relation.json", models / "aro")
    public_tests.winoground(models / "winoground", 4)
    public_tests.flickr8k(models / "flickr8k", 6)
    shutil.copytree(models / "flickr8k", models / "flickr8k/Flicker8k_Dataset")
    for path in photos.glob("*.jpg"):
        path.with_suffix(".txt").write_text(f"a picture called {path.stem}")
    first, *others = commands("judge.md")
    invoke(monkeypatch, models, [first])
    keys = pq.read_table(models / "data/00000.parquet")["key"].to_pylist()
    labelled = [f"{key},{number % 2}" for number, key in enumerate(keys)]
    (models / "labels.csv").write_text("\n".join(["key,match", *labelled]))
    invoke(monkeypatch, models, others)
    server.close()
    names = ("judged", "rubric", "local")
    tables = {name: pq.read_table(models / f"data/filtered/{name}/00000.parquet") for name in names}
    assert all(value is not None for name in ("judged", "local") for value in tables[name]["vqa"].to_pylist())
    assert set(tables["rubric"]["match"].to_pylist()) == {4.0} and "itm" in tables["judged"].column_names
    rows = json.loads((models / "aro.json").read_text())
    assert len(rows) == 6 and set(rows[0]["scores"]) == set(rows[0]["blind"]) == {"itm", "itc"}
    pairs = {(request["image"].tobytes(), request["prompt"]) for request in server.requests}
    assert len(pairs) == len(server.requests)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ray_cluster_with_s3(models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="--engine ray needs the extra ray")
    pytest.importorskip("s3fs", reason="S3 needs the extra s3")
    pytest.importorskip("moto", reason="the S3 server is moto's")
    store = S3Server()
    for name, value in store.variables.items():
        monkeypatch.setenv(name, value)
    pack, *others = commands("ray_s3.md")
    run(models, [pack])
    upload(models / "data", "s3://pictures/data")
    run(models, others)
    stored = set(remote_contents("s3://pictures/data"))
    store.close()
    assert {"captions/blip/00000.parquet", "filtered/r1/00000.parquet", "filtered/r2/00000.parquet"} <= stored
    assert (models / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_million_urls(models: Path) -> None:
    write_tiny_configs(models)
    draw_set(models, "coco.json", texts=1, prefix="images/")
    draw_set(models, "test.json", texts=2, prefix="images/")
    lines = commands("ten_million.md")
    assert len(lines) >= 8
    with Web() as web:
        write_urls(models / "urls.parquet", web)
        run(models, replace_in(lines, **{"--nproc 8": "--nproc 2"}))
    assert len(list((models / "data" / "filtered" / "kept").glob("*.parquet"))) == 3
    assert len(list((models / "trial" / "captions" / "blip").glob("*.parquet"))) == 1
    assert json.loads((models / "runs" / "kept" / "launches.jsonl").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_recipe_of_the_paper(tmp_path: Path) -> None:
    write_tiny_configs(tmp_path)
    for name in ("coco_karpathy_train.json", "vg_caption.json"):
        draw_set(tmp_path, name, texts=1)
    for name in ("coco_karpathy_val.json", "coco_karpathy_test.json", "flickr30k_test.json"):
        draw_set(tmp_path, name, texts=2)
    lines = commands("paper.md")
    assert len(lines) >= 10
    with Web() as web:
        write_urls(tmp_path / "web.parquet", web)
        run(tmp_path, replace_in(lines, **{"--nproc 8": "--nproc 1"}))
    for name in ("noisy", "captioner", "filter", "bootstrapped", "captioner2", "filter2"):
        assert (tmp_path / "runs" / name / "model" / "model.safetensors").is_file()
