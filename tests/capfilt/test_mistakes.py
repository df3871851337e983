"""A catalogue of user mistakes per command, with the sentence that each one gets.

Each ends with exit code 2, nothing on stdout and no traceback, before any long work.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capfilt.cli import app

# command line -> pattern of the error
CATALOGUE = {
    "download none.csv d": r"No file at none\.csv\.",
    "download table.csv d": "has no column that looks like a URL; it has path, words. Name the column with --url-col",
    "download table.csv d --url-col uri": r"has no column 'uri' \(--url-col\); it has path, words",
    "download list.docx d": "has an unknown format; its name must end in .txt",
    "download cut.parquet d": "cut.parquet cannot be read as parquet",
    "download heads.csv d": r"heads\.csv has no rows",
    "download urls.csv table.csv": "table.csv is a file; give a folder for the shards",
    "download urls.csv d --shard-size 0": "shard_size must be at least 1, not 0",
    "download urls.csv d --duplicates some": "Setting 'duplicates': input should be '', 'exact' or 'near'",
    "download urls.csv d --min-success 2": "min_success is a share between 0 and 1, not 2",
    "download urls.csv d --config none.yaml": r"No config file at none\.yaml\.",
    "download urls.csv d --config typo.yaml": "Unknown setting 'shard_sise' .* did you mean 'shard_size'",
    "download urls.csv d --config cut.yaml": "cut.yaml is not valid YAML",
    "download urls.csv d --set shard_size": "--set takes name=value",
    "download urls.csv data": "data was made with other settings; .* Changes",
    "pack nowhere d": "No file or folder at nowhere",
    "pack empty d": "empty holds no pictures, tars or Parquet files",
    "pack cut.json d": "cut.json, row 0 is not valid JSON, or cut short",
    "pack cut.parquet d": "is not a readable Parquet file",
    "pack heads.csv d": "heads.csv has no column that looks like the path of a picture; it has .* with --image-col",
    "pack photos d --annotations none.csv": r"No annotation file at none\.csv\.",
    "pack photos table.csv": "table.csv is a file; give a folder for the shards",
    "pack photos data --image-size 64": r"data was made with other settings; .*\n  image_size: 512 -> 64",
    "caption data": "Setting 'model' is required",
    "caption nowhere --model captioner": "No folder at nowhere",
    "caption empty --model captioner": r"empty is not a shard set: it holds no \.tar files",
    "caption data --model nowhere": "No file or folder at nowhere, and the Hugging Face hub did not provide it",
    "caption data --model empty": "empty is no model folder: it has no config.json",
    "caption data --model cut.pth": "cut.pth is no PyTorch checkpoint of plain tensors",
    "caption data --model filter": "filter is a retrieval model; captioning needs the text decoder: use a captioner",
    "caption data --model captioner --tokenizer none.txt": r"No file or folder at none\.txt",
    "caption data --model captioner --mode magic": "'generate.mode': input should be 'nucleus', 'beam' or 'greedy'",
    "caption data --model captioner --name web": "letters, digits, . _ \\+ or -, and not",
    "caption data --model captioner --device gpu": "device must be auto, cpu, cuda or cuda:N, not 'gpu'",
    "caption data --model captioner --device cuda": "No CUDA device was found; use --device cpu",
    "caption data --model captioner --device cuda:1": "No CUDA device was found; use --device cpu",
    "caption data --model captioner --engine slurm": "input should be 'local' or 'ray', but got 'slurm'",
    "caption data --model captioner --workers 0": "workers must be at least 1, not 0",
    "caption data --model captioner --rank 4 --world-size 2": "rank must be 0 to world_size - 1, not 4 of 2",
    "caption data --model captioner --set generate.beam=4": "did you mean 'generate.beams'",
    "caption data --model captioner --set generate.max_length=900": "max_length 900 must be above the prompt's",
    "caption data --model captioner --name c --mode greedy": r"captions/c was made with other settings",
    "filter data": r"Give a model to score with \(--model\), or finished scores \(--scores\)",
    "filter data --model captioner": "captioner is a captioner; filtering needs the ITM head: use a retrieval",
    "filter data --scores nothing": "data/scores/nothing has no scores of web, c; give a --model",
    "filter data --model filter --sources nobody": "No captions named 'nobody' .* the sources are web, c",
    "filter half --model filter": "half/captions/c lacks 1 of 1 shards, 00000 first; run the same",
    "filter data --model filter --threshold 2": "threshold must be a probability from 0 to 1, or auto, not 2",
    "filter data --model filter --threshold half": "input should be a valid number or 'auto', but got 'half'",
    "filter data --model filter --threshold auto": "threshold auto needs labels",
    "filter data --model filter --threshold auto --labels none.csv": r"No file of labels at none\.csv\.",
    "filter data --model filter --threshold auto --labels table.csv": "has no column 'key'; its columns are",
    "filter data --model filter --top-fraction 0": "top_fraction must be above 0 and at most 1",
    "filter data --model filter --clip ViT-B-32": "is not a CLIP model; write open_clip:ARCH/TAG",
    "filter data --model filter --clip open_clip:Nope/x": "open_clip has no architecture 'Nope'",
    "filter data --model filter --set clip_threshold=0.2": "clip_threshold needs the score 'clip', but .* add --clip",
    "filter data --model filter --explain --best-of clip": "best_of needs the score 'clip', but .* add --clip",
    "filter data --model filter --name r1 --threshold 0.7": "r1 was made with other settings; .*itm: 0.5 -> 0.7",
    "report nowhere": "No folder at nowhere",
    "report table.csv": "No folder at table.csv",
    "report empty": "empty is not an output of `capfilt filter`; give DATA/filtered/NAME",
    "report twice": "twice has several filtered sets; give one of twice/filtered/a, twice/filtered/b",
    "report data/filtered/r1 --out empty": "empty is a folder; give a file name",
    "report data/filtered/r1 --pictures -1": "pictures must be from 0 to 1000, not -1",
    "report data/filtered/r1 --compare nowhere": "No folder at nowhere",
    "export empty o": "empty is not an output of `capfilt filter`",
    "export data/filtered/r1 table.csv": "table.csv is a file",
    "export data/filtered/r1 o --format tfrecord": "input should be 'webdataset', .* or 'datacomp', but got 'tfrecord'",
    "export data/filtered/r1 o --decontaminate nowhere": "No folder of pictures at nowhere",
    "export data/filtered/r1 o --decontaminate empty": "No picture below empty can be decoded",
    "pretrain nowhere --out run": "No data set at nowhere",
    "pretrain data=-1 --out run": "The weight of a data set must be above 0",
    "pretrain data/filtered --out run": "data/filtered holds data sets: give one of them, such as data/filtered/r1",
    "pretrain cut.json --out run --preset tiny": "cut.json, row 0 is not valid JSON, or cut short",
    "pretrain odd.json --out run --preset tiny --steps 1": 'odd.json, row 0: "image" must be a path',
    "pretrain data --out run --preset huge": "'preset': input should be 'tiny', 'base' or 'large', but got 'huge'",
    "pretrain data --out run --preset tiny --tokenizer train:40": "Set either steps or epochs above 0",
    "pretrain data --out run --preset tiny --tokenizer train:x": "needs a number of word pieces after 'train:'",
    "pretrain data --out run --steps 1 --device gpu": "device must be auto, cpu, cuda or cuda:N, not 'gpu'",
    "pretrain data --out run --steps 1 --init captioner": "captioner is a captioner; the task needs the text encoder",
    "pretrain data --out run --steps 1 --vision none.pth": r"No file or folder at none\.pth",
    "pretrain data --out run --nproc 0": "The number of processes must be at least 1, not 0",
    "pretrain data --out table.csv --preset tiny --tokenizer train:40 --steps 1": "table.csv is a file; give a folder",
    "finetune caption clean.json --out run": "Finetuning starts from a checkpoint or from a new model: give --init",
    "finetune caption none.json --init captioner --out run": "No data set at none.json",
    "finetune caption clean.json --init filter --out run": "captioning needs the text decoder: use a captioner",
    "finetune vqa clean.json --init blip --out run --steps 1": 'row 0: "question" must be a text',
    "finetune nlvr clean.json --init blip --out run --steps 1": 'row 0: "images" must be two paths',
    "finetune caption clean.json --init captioner --out run --image-size 33": "33 is not a multiple of patch_size",
    "finetune caption clean.json --init captioner --out run --set validation.annotations=no.json": "No .* at no.json",
    "finetune caption clean.json --init captioner --out run --steps 1 --set train.lr=-1": "lr must be at least 0",
    "finetune caption clean.json --init captioner --out old --steps 1": r"another configuration; choose another folder",
    "evaluate caption clean.json": "Setting 'model' is required",
    "evaluate caption none.json --model captioner": "No data set at none.json",
    "evaluate caption cut.json --model captioner": "cut.json, row 0 is not valid JSON, or cut short",
    "evaluate caption clean.json --model filter": "captioning needs the text decoder: use a captioner",
    "evaluate vqa clean.json --model blip": 'row 0: "question" must be a text',
    "evaluate classify empty --model filter": "give a folder with a folder per class",
    "evaluate caption clean.json --model captioner --set words=nltk": "input should be 'auto', 'ptb' or 'plain'",
    "convert nowhere x": "No file or folder at nowhere",
    "convert cut.pth x": "cut.pth is no PyTorch checkpoint of plain tensors",
    "convert captioner photos": "photos exists and is no blipcore model: choose another path",
    "convert captioner x --task retrieval": "captioner is a captioner; the task needs the text encoder",
    "convert captioner x --numerics mine": "input should be 'official' or 'transformers', but got 'mine'",
    "bootstrap none.yaml": r"No config file at none\.yaml\.",
    "bootstrap typo.yaml": "Unknown setting 'shard_sise'",
    "bootstrap loop.yaml --rounds 0": "rounds must be at least 1, not 0",
    "bootstrap loop.yaml --set filter.tresh=1": "filter: Unknown setting 'tresh' .* did you mean 'threshold'",
    "bootstrap loop.yaml": r"Some input files do not exist: people\.json, test\.json\.",
    "demo --out photos": "photos is not empty and holds no demo; give another --out",
    "demo --lang fr": "input should be 'en' or 'zh', but got 'fr'",
    "demo --rows some": "input should be 'main' or 'all', but got 'some'",
    "demo --scale 0": "scale must be above 0 and at most 1000, not 0",
}
# command line -> error of the parser
USAGE = {
    "nonsense": "No such command 'nonsense'",
    "pretrain --out run": "Missing argument 'DATASET'",
    "pretrain data": "Missing option '--out'",
    "finetune poetry x --out run": "'poetry' is not one of 'caption', 'retrieval', 'vqa', 'nlvr'",
    "evaluate poetry x": "'poetry' is not one of",
    "convert captioner x --to onnx": "'onnx' is not one of 'blipcore', 'hf', 'official'",
    "caption data --batch-size many": "Invalid value for '--batch-size': Input should be a valid integer",
    "caption data --modle x": "No such option: --modle",
}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_model: Callable[..., Path],
    draw: Callable,
) -> Iterator[Path]:
    """Make the files that the command lines name: valid ones, and many that are not."""
    root, here = tmp_path_factory.mktemp("mistakes"), Path.cwd()
    os.chdir(root)
    for name, parts in {"captioner": ["decode"], "filter": ["encode", "itc", "itm"]}.items():
        save_tiny_model(root / name, *parts)
    save_tiny_model(root / "blip", "encode", "decode", "itc", "itm")
    for name in ("empty", "photos"):
        (root / name).mkdir()
    for number in range(2):
        draw(number).save(root / "photos" / f"{number}.jpg")
        (root / "photos" / f"{number}.txt").write_text("a dog")
    files = {
        "table.csv": "path,words\na.jpg,a dog\n", "heads.csv": "url,caption\n", "urls.csv": "url\nhttp://a.example/b\n",
        "list.docx": "x", "cut.parquet": "PAR1", "cut.json": "[{", "cut.yaml": "a: [", "cut.pth": "PK",
        "typo.yaml": "shard_sise: 5\n", "odd.json": '[{"picture": "a.jpg"}]',
        "clean.json": json.dumps([{"image": "photos/0.jpg", "caption": "a dog"}]),
        "loop.yaml": "{data: data, human: [people.json], out: loop, tests: {caption: test.json}}",
    }  # fmt: skip
    for name, content in files.items():
        (root / name).write_text(content)
    for line in (
        "pack photos data", "caption data --model captioner --name c", "filter data --model filter --name r1",
        "pack photos half", "caption half --model captioner --name c",
        "pack photos twice", "filter twice --model filter --name a", "filter twice --model filter --name b",
    ):  # fmt: skip
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == 0, result.output
    (root / "half" / "captions" / "c" / "00000.parquet").rename(root / "half" / "captions" / "c" / "99999.parquet")
    (root / "old").mkdir()
    (root / "old" / "config.yaml").write_text("task: vqa\n")
    (root / "old" / "metrics.jsonl").write_text('{"step": 50}\n')
    yield root
    os.chdir(here)


@pytest.mark.parametrize("line", CATALOGUE)
def test_a_mistake_is_one_sentence(line: str, folder: Path) -> None:
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 2, result.output
    errors = [part for part in result.stderr.splitlines() if part.startswith("Error: ")]
    assert len(errors) == 1 and result.stdout == "" and "Traceback" not in result.stderr
    sentence = result.stderr[result.stderr.index("Error: ") :].removeprefix("Error: ")
    assert re.search(CATALOGUE[line], sentence, re.DOTALL), sentence
    assert len(sentence) < 1000


@pytest.mark.parametrize("line", USAGE)
def test_an_error_of_the_parser_comes_with_the_usage(line: str, folder: Path) -> None:
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert USAGE[line] in " ".join(result.stderr.split()) and "--help" in result.stderr


def test_a_mistake_leaves_no_files_behind_that_block_the_next_run(folder: Path) -> None:
    for wrong in ("open_clip:Nope/x", "ViT-B-32"):
        assert CliRunner().invoke(app, ["filter", "twice", "--model", "filter", "--clip", wrong]).exit_code == 2
    result = CliRunner().invoke(app, ["filter", "twice", "--model", "filter", "--name", "c"])
    assert result.exit_code == 0, result.output
