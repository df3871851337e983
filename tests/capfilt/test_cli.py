"""The command line: help, options, one sentence per mistake, exit codes, JSON on stdout."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner, Result
from web import Web

import capfilt
from capfilt import options
from capfilt.cli import app

# A new option is a decision: it needs an entry here.
RUN_OPTIONS = "--backend --batch-size --device --dtype --engine --rank --workers --world-size"
TRAIN_OPTIONS = "--batch-size --device --dtype --epochs --lr --nproc --seed --steps --workers"
OPTIONS = {
    "download": "--allow-private --caption-col --config --duplicates --image-size --json --min-success --retries "
    "--retry-failed --set --shard-size --threads --url-col --workers",
    "pack": "--annotations --caption-col --config --duplicates --image-col --image-size --json --min-success --set "
    "--shard-size --workers",
    "caption": "--base-url --config --json --mode --model --name --num-captions --out --prompt --seed --set "
    f"--tokenizer {RUN_OPTIONS}",
    "filter": "--best-of --captioner --captioner-name --clip --config --explain --json --labels --model --name --out "
    f"--scores --set --sources --target --threshold --tokenizer --top-fraction {RUN_OPTIONS}",
    "pretrain": f"--config --image-root --init --json --out --preset --set --text --tokenizer --vision {TRAIN_OPTIONS}",
    "finetune": f"--config --image-root --image-size --init --json --out --set --tokenizer {TRAIN_OPTIONS}",
    "evaluate": "--answers --batch-size --config --device --dtype --image-root --image-size --json --model --results "
    "--set --tokenizer",
    "convert": "--image-size --json --numerics --set --task --to --tokenizer",
    "report": "--compare --json --out --pictures",
    "doctor": "--json",
    "export": "--decontaminate --format --json --licence --workers",
    "bootstrap": "--dry-run --json --rounds --set",
    "demo": "--json --lang --out --quick --rows --scale --seed",
}
COMMANDS = get_command(app).commands
SLOW_IMPORTS = ["torch", "transformers", "open_clip", "img2dataset", "webdataset", "pyarrow", "numpy", "PIL"]
SLOW_IMPORTS += ["pydantic", "yaml"]


def shell(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `capfilt` in its own process."""
    variables = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "COLUMNS": "100"} | environment
    command = [sys.executable, "-m", "capfilt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, timeout=120)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("output", ["finish({'ok': 1}, as_json=True)", "print('ok')"])
def test_a_closed_stdout_ends_the_command_quietly(output: str, unbuffered: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = (
        f"import typer\nfrom capfilt.console import *\n@exit_on_error\ndef write():\n    {output}\ntyper.run(write)"
    )
    variables = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, env=variables, timeout=120)
    os.close(write_end)
    assert (process.returncode, process.stderr) == (1, "")


def test_help_lists_every_command_and_imports_nothing_slow() -> None:
    result = shell("--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in COMMANDS)

    program = "import sys; import capfilt.cli; print([name for name in sys.argv[1:] if name in sys.modules])"
    root = str(Path(capfilt.__file__).parents[1])
    command = [sys.executable, "-c", program, *SLOW_IMPORTS]
    assert subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: capfilt {command}" in result.stdout
    assert "--json" in result.stdout


def test_the_option_names_of_every_command_are_frozen() -> None:
    names = {
        command: {name for parameter in COMMANDS[command].params for name in parameter.opts if name.startswith("--")}
        for command in COMMANDS
    }
    assert names == {command: set(line.split()) for command, line in OPTIONS.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_and_a_panel(command: str) -> None:
    panels = {options.READ, options.DOWNLOAD, options.MODEL, options.CAPTION, options.DECIDE, options.TRAIN}
    panels |= {options.RUN, options.OUTPUT, options.SETTINGS}
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
        if parameter.opts[0].startswith("--"):
            assert parameter.rich_help_panel in panels, parameter.name


def default(cls: Any, name: str) -> Any:
    """The default of a config's field; dots reach into nested fields."""
    first, *rest = name.split(".")
    field = {field.name: field for field in dataclasses.fields(cls)}[first]
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for part in rest:
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_help_shows_the_defaults_of_the_config(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []

    def record(context: typer.Context, cls: type, fields: dict[str, str | None] | None = None) -> None:
        configs.append((cls, fields or {}))
        raise typer.Exit

    for module in ("cli", "cli_models"):
        monkeypatch.setattr(f"capfilt.{module}.read_settings", record)
    result = run(*shlex.split(COMMANDS[command].epilog.removeprefix("Example: capfilt ")))
    assert result.exit_code == 0, result.output
    [(cls, fields)] = configs
    for parameter in COMMANDS[command].params:
        shown = re.search(r"\[default: (.*)\]\[/dim\]", parameter.help)
        if shown:
            value = default(cls, fields.get(parameter.name, parameter.name))
            # A default that is worked out later is described in words.
            assert shown[1] == str(value) or value in (None, "", 0, []), parameter.name


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
        (KeyboardInterrupt(), "Error: interrupted; run the same command again to resume.\n", 130),
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

    # A second run needs no server, and the share of ok rows decides the exit code.
    result = shell(*command, "--min-success", "0.9", cwd=tmp_path)
    assert result.returncode == 1
    assert "all 2 shards are done already" in result.stderr
    assert result.stderr.endswith("Error: only 3 of 5 rows are ok, less than the share of 0.9.\n")
    assert "ok 3, not_found 2" in result.stdout
    other = shell(*command, "--image-size", "32", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.endswith("Changes (recorded -> new):\n  image_size: 24 -> 32\n")
