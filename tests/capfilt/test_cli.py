"""The command line: help of every command, imports, and a download from its settings to its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result
from web import Web

import capfilt
from capfilt.cli import app

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
