"""`capfilt inspect` shows how an input is read; the commands of the page run as written."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import contents
from PIL import Image
from typer.testing import CliRunner, Result

import capfilt
from capfilt.cli import app
from capfilt.ingest.pack import PackConfig, pack
from capfilt.shards.format import filtered_schema
from capfilt.shards.manifest import Manifest
from capfilt.shards.tables import write_table

PAGE = Path(capfilt.__file__).resolve().parents[1] / "examples" / "data.md"
U = "http://a.example/"


def jpeg(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an input of every kind, under the names of the page."""
    folder = tmp_path_factory.mktemp("inputs")
    urls = pa.table({"url": [f"{U}1.jpg", f"{U}2.jpg"], "caption": ["a red wall", ""], "licence": ["CC BY", "CC0"]})
    pq.write_table(urls, folder / "urls.parquet")
    for name in ("laion400m-meta", "parts"):
        (folder / name).mkdir()
        for part in range(2):
            laion = pa.table({"SAMPLE_ID": [1.0], "URL": [f"{U}{part}"], "TEXT": ["a cat"]})
            pq.write_table(laion, folder / name / f"part-{part:05d}.snappy.parquet")
    with fsspec.open("memory://lists/urls.jsonl.gz", "wb", compression="gzip") as file:
        file.write(json.dumps({"url": f"{U}1", "caption": "a cat"}).encode())
    recap = {"url": [U], "re_caption": ["a red wall"], "org_caption": ["IMG 1"]}
    pq.write_table(pa.table(recap), folder / "recap.parquet")
    (folder / "Train_GCC-training.tsv").write_text(f"a bus station\t{U}1\nsierra looked\t{U}2\n")
    (folder / "cc12m.tsv").write_text(f'{U}1\t"Big Ben"\n')
    (folder / "excel.csv").write_bytes(f"url;caption\r\n{U}1;Köln\r\n".encode("cp1252"))
    (folder / "photos").mkdir()
    with tarfile.open(folder / "webdataset.tar", "w") as tar:
        for colour in ("red", "blue"):
            (folder / "photos" / f"{colour}.jpg").write_bytes(jpeg(colour))
            (folder / "photos" / f"{colour}.txt").write_text(f"a {colour} wall")
            for name in (f"{colour}.jpg", f"{colour}.txt"):
                tar.add(folder / "photos" / name, name)
    (folder / "captions.json").write_text(json.dumps([{"image": "photos/red.jpg", "caption": ["a wall", "a red one"]}]))
    pq.write_table(pa.table({"image": [jpeg("red")], "text": ["a red wall"]}), folder / "pictures.parquet")
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"image": [str(folder / "photos" / "red.jpg")], "text": ["a wall"]})
    saved.cast_column("image", datasets.Image()).save_to_disk(str(folder / "saved_dataset"))
    pack(PackConfig(str(folder / "photos"), str(folder / "data")), progress=False)
    filtered = folder / "data" / "filtered" / "r1"
    Manifest.begin(filtered, "filter", {"threshold": 0.5}, images=folder / "data")
    rows = [
        {"key": f"00000000{n}", "source": "web", "index": 0, "text": text, "itm": 0.4 + n / 5, "keep": bool(n)}
        | {"reason": "kept" if n else "itm<0.5"}
        for n, text in enumerate(("a blue wall", "a red wall"))
    ]
    write_table(filtered / "00000.parquet", pa.Table.from_pylist(rows, schema=filtered_schema(["itm"])))
    return folder


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> Result:
    monkeypatch.chdir(folder)
    return CliRunner().invoke(app, shlex.split(command)[1:])


def page_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("capfilt inspect ")]


# command -> parts of its output
EXPECTED = {
    "urls.parquet": [
        "URL list of 1 file",
        "column 'url'",
        "caption (1 rows)",
        "2, 1 with a text",
        "a red wall",
        "CC BY",
    ],
    "laion400m-meta": ["URL list of 2 files", "TEXT (2 rows)", "SAMPLE_ID"],
    "'parts/part-{00000..00001}.snappy.parquet'": ["URL list of 2 files"],
    "memory://lists/urls.jsonl.gz": ["one row per line", "caption (1 rows)"],
    "photos": ["folder of 4 files", ".txt (2 rows)", "capfilt pack photos DATA", "a blue wall"],
    "captions.json": ["annotations of 1 file", "'image'", "caption (1 rows)", "a red one"],
    "pictures.parquet": ["parquet of 1 file", "'image'", "text (1 rows)"],
    "saved_dataset": ["dataset of", "text (1 rows)"],
    "webdataset.tar": ["webdataset of 1 file", ".txt (2 rows)"],
    "data": ["shard set made by `capfilt pack`", "web (2 rows)", "outcomes: 2 ok", "filtered sets: r1"],
    "data/filtered/r1 --json": ['"filtered set', '"web": 1', "1 itm<0.5, 1 kept"],
    "recap.parquet --caption-col re_caption --caption-col org_caption": [
        "re_caption (1 rows), org_caption (1 rows)",
        "capfilt download recap.parquet DATA --caption-col re_caption --caption-col org_caption",
    ],
    "recap.parquet --caption-col none": ["texts     none"],
    "Train_GCC-training.tsv --columns caption,url": ["no header", "caption (2 rows)"],
    "cc12m.tsv --quoting none": ["quotes are part of the text", '"Big Ben"'],
    "excel.csv --encoding cp1252": ["CP1252", "delimiter ';'", "Köln"],
}


def test_every_command_of_the_page_is_tested() -> None:
    assert page_commands() == [f"capfilt inspect {arguments}" for arguments in EXPECTED]


@pytest.mark.parametrize("arguments", EXPECTED)
def test_the_page_runs_as_written(inputs: Path, monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    before = contents(inputs)
    result = run(inputs, monkeypatch, f"capfilt inspect {arguments}")
    assert result.exit_code == 0, result.output
    assert [words for words in EXPECTED[arguments] if words not in result.stdout] == [], result.stdout
    assert contents(inputs) == before


def test_json_is_one_object(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = json.loads(run(inputs, monkeypatch, "capfilt inspect urls.parquet --json").stdout)
    assert summary["account"]["texts"] == {"caption": 1} and summary["account"]["rows"] == 2
    assert summary["rows"][0] == {"url": f"{U}1.jpg", "text": "a red wall", "further texts": [], "licence": "CC BY"}
    assert summary["command"] == "capfilt download urls.parquet DATA"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("recap.parquet", "'re_caption', 'org_caption' may hold texts"),
        ("nothing", "No file or folder at nothing"),
        ("'x*.parquet'", "No file matches x*.parquet"),
        ("urls.parquet --kind folder", "`capfilt download urls.parquet DATA`"),
        ("photos --kind list", "no column that looks like a URL"),
        ("excel.csv", "--encoding"),
        ("urls.parquet --caption-col alt", "has no column 'alt'"),
    ],
)
def test_what_the_command_would_refuse_is_said(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    result = run(inputs, monkeypatch, f"capfilt inspect {arguments}")
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output, result.output


def test_the_account_comes_before_the_refusal(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(inputs, monkeypatch, "capfilt inspect recap.parquet")
    assert "not used  re_caption, org_caption" in result.stdout and "a red wall" in result.stdout


def test_counts_of_a_long_input_are_those_of_its_first_rows(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("capfilt.ingest.inspect.MAX_ROWS", 10)
    (tmp_path / "a.csv").write_text("url,caption\n" + "http://x,a b\n" * 50)
    result = run(tmp_path, monkeypatch, "capfilt inspect a.csv")
    assert "The counts are those of the first 15 rows." in result.stdout


def test_tables_of_a_stage_name_their_shard_set(inputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(inputs / "data" / "filtered" / "r1", tmp_path / "scores")
    manifest = json.loads((tmp_path / "scores" / "manifest.json").read_text())
    (tmp_path / "scores" / "manifest.json").write_text(json.dumps(manifest | {"stage": "score", "images": "/data"}))
    result = run(tmp_path, monkeypatch, "capfilt inspect scores")
    assert result.exit_code == 2 and "inspect their shards, /data" in result.stderr


def test_inspect_does_not_import_torch(inputs: Path) -> None:
    code = "import sys; from capfilt.ingest.inspect import *; inspect(InspectConfig('photos'))"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=inputs, check=True, env={"PYTHONPATH": str(PAGE.parents[1])})
