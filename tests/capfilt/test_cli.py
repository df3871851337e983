"""What a person at the keyboard meets: help at once, one sentence for a mistake, exit codes, JSON on stdout."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner
from web import Web

import capfilt
from capfilt.cli import app

COMMANDS = ("download", "caption", "filter", "pretrain", "finetune", "evaluate", "convert", "report", "doctor", "demo")
HEAVY = (
    "torch",
    "transformers",
    "open_clip",
    "img2dataset",
    "webdataset",
    "pyarrow",
    "numpy",
    "PIL",
    "pydantic",
    "yaml",
)


def shell(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `capfilt` as a program of its own."""
    variables = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "COLUMNS": "100"} | environment
    command = [sys.executable, "-m", "capfilt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, timeout=120)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("says", ["finish({'ok': 1}, as_json=True)", "print('ok')"])
def test_who_reads_no_further_is_told_nothing(says: str, unbuffered: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    program = f"import typer\nfrom capfilt.console import *\n@sentences\ndef say():\n    {says}\ntyper.run(say)"
    variables = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, env=variables, timeout=120)
    os.close(writes)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_help_is_there_in_under_a_second_and_loads_nothing_heavy() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = shell("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0  # not the clock: CI is busy

    probe = "import sys; import capfilt.cli; print([name for name in sys.argv[1:] if name in sys.modules])"
    root = str(Path(capfilt.__file__).parents[1])
    command = [sys.executable, "-c", probe, *HEAVY]
    assert subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: capfilt {command}" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_surface_does_not_grow_by_accident(command: str) -> None:
    shared = {"--out", "--name", "--device", "--dtype", "--batch-size", "--workers", "--seed", "--config", "--set"}
    shared |= {"--engine", "--rank", "--world-size", "--tokenizer"}
    parameters = typer.main.get_command(app).commands[command].params
    options = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    most = {"filter": 13}.get(command, 10)  # it may caption too
    assert len(options - shared - {"--json"}) <= most


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(config: object) -> dict:
        raise KeyError("a bug")

    monkeypatch.setattr("capfilt.ingest.download.download", broken)
    assert isinstance(run("download", "a.txt", "b").exception, KeyError)


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (OSError(28, "No space left on device", "data/0.tar"), "Error: No space left on device: data/0.tar\n", 2),
        (PermissionError(13, "Permission denied", "data"), "Error: Permission denied: data\n", 2),
        (ImportError("pip install 'capfilt[eval]'"), "Error: pip install 'capfilt[eval]'\n", 2),
        (ValueError("two\n  lines"), "Error: two\n  lines\n", 2),
        (KeyboardInterrupt(), "Error: stopped; run the same command again to go on.\n", 130),
        (MemoryError(), "Error: out of memory; try a smaller --batch-size or fewer --workers.\n", 1),
    ],
)
def test_errors_become_sentences(error, sentence: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object) -> dict:
        raise error

    monkeypatch.setattr("capfilt.ingest.download.download", broken)
    result = run("download", "a.txt", "b")
    assert (result.stderr, result.exit_code) == (sentence, code)


def test_download_from_yaml_options_and_set(tmp_path: Path) -> None:
    with Web() as web:
        urls = [f"{web.url}/good/{n}.jpg" for n in range(3)] + [f"{web.url}/missing/{n}" for n in range(2)]
        pq.write_table(pa.table({"url": urls, "alt": [f"text {n}" for n in range(5)]}), tmp_path / "u.parquet")
        (tmp_path / "run.yaml").write_text("shard_size: 4\nallow_private: true\nimage_size: 16\nworkers: 1\n")
        command = ["download", "u.parquet", "data", "--config", "run.yaml", "--set", "quality=90", "--image-size", "24"]
        result = shell(*command, "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        summary = json.loads(result.stdout)
        assert (summary["rows"], summary["ok"], summary["outcomes"]) == (5, 3, {"ok": 3, "not_found": 2})
        config = json.loads((tmp_path / "data" / "manifest.json").read_text())["config"]
        assert [config[name] for name in ("shard_size", "image_size", "quality")] == [4, 24, 90]
        assert pq.read_table(tmp_path / "data" / "00000.parquet")["width"].to_pylist() == [24, 24, 24, None]
        assert "2 not_found (HTTP Error 404" in result.stderr

    # done is done, also without the servers; and the share of successes decides the exit code
    result = shell(*command, "--min-success", "0.9", cwd=tmp_path)
    assert result.returncode == 1
    assert "all 2 shards are done already" in result.stderr
    assert result.stderr.endswith("Error: only 3 of 5 rows are ok, less than the share of 0.9.\n")
    assert "ok 3, not_found 2" in result.stdout
    other = shell(*command, "--image-size", "32", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.endswith("What differs (there -> now):\n  image_size: 24 -> 32\n")
