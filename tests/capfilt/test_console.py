"""Conventions of the command line: summaries on stdout, errors as one sentence on stderr, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import capfilt
from blipcore.io.lock import FolderLockedError
from blipcore.io.memory import NotEnoughMemoryError
from capfilt.cli import app
from capfilt.console import failed_shards, finish, too_few_ok
from capfilt.errors import EngineError


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
        (FolderLockedError("data is being written"), "Error: data is being written\n", 1),
        (EngineError("no worker is left"), "Error: no worker is left\n", 1),
        (MemoryError(), "Error: out of memory; try a smaller --batch-size or fewer --workers.\n", 1),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "Error: out of memory; try a smaller --batch-size or fewer --workers.\n",
            1,
        ),
        (NotEnoughMemoryError("It needs 9 GB."), "Error: It needs 9 GB.\n", 1),
    ],
)
def test_errors_become_sentences(
    error: BaseException, sentence: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: object) -> dict:
        raise error

    monkeypatch.setattr("capfilt.ingest.download.download", broken)
    result = run("download", "a.txt", "b")
    assert (result.stderr, result.exit_code) == (sentence, code)


def test_the_traceback_of_a_sentence_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPFILT_DEBUG", "1")
    result = run("download", "none.csv", "d")
    assert result.exit_code == 2 and result.stderr.startswith("Traceback")
    assert result.stderr.endswith("Error: No file at none.csv.\n")


SUMMARY: dict[str, Any] = {
    "out": "é",
    "texts_kept": 12345,
    "share": 0.123456,
    "failed": {},
    "shards": {"done": 1500, "failed": {}},
    "names": ["a", "b"],
    "seconds": 1234.5,
}


def test_a_summary_is_a_line_per_value_without_empty_ones(capsys: pytest.CaptureFixture[str]) -> None:
    finish(SUMMARY, as_json=False)
    *lines, memory = capsys.readouterr().out.splitlines()
    assert lines == [
        "out             é",
        "texts kept      12,345",
        "share           0.1235",
        "shards          done 1,500",
        "names           a, b",
        "seconds         1,234",
    ]
    assert re.fullmatch(r"peak memory gb  this_process [\d.]+, largest_child [\d.e-]+", memory)


def test_a_summary_may_be_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    finish(SUMMARY, as_json=True)
    out = capsys.readouterr().out
    summary = json.loads(out)
    assert summary.pop("peak_memory_gb")["this_process"] > 0
    assert summary == SUMMARY and out.count("\n") == 1 and "é" in out


def test_an_error_follows_the_summary_and_sets_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        finish({"ok": 1}, as_json=True, error="too few.")
    output = capsys.readouterr()
    assert (caught.value.exit_code, output.err) == (1, "Error: too few.\n")
    assert json.loads(output.out)["ok"] == 1


def test_failed_shards_and_a_low_success_are_errors() -> None:
    assert failed_shards({"shards": {"failed": {}}}) is None
    error = failed_shards({"shards": {"failed": {"00003": "no space", "00007": "other"}}})
    assert error == "2 shards failed, first 00003: no space. Remove the cause, then run the same command again."
    error = failed_shards({"shards": {"failed": {"00003": "It is no tar."}}})
    assert error == "1 shard failed, first 00003: It is no tar. Remove the cause, then run the same command again."
    summary = {"success": 0.5, "ok": 1, "rows": 2}
    assert too_few_ok(summary, 0.5) is None
    assert too_few_ok(summary, 0.6) == "only 1 of 2 rows are ok, less than the share of 0.6."
