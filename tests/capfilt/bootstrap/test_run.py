"""`capfilt bootstrap`: one round with tiny models, and the time that is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from typer.testing import CliRunner

from blipcore.io.lock import lock_folder
from capfilt.bootstrap.plan import Step
from capfilt.bootstrap.run import format_time_left
from capfilt.cli import app
from capfilt.engine.commands import Command


def bootstrap(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "capfilt", "bootstrap", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_a_finished_round_is_skipped_and_another_can_follow(loop_yaml: Path) -> None:
    planned = bootstrap(loop_yaml, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr[-2000:]
    assert json.loads(planned.stdout)["unknown"][0] == "filter" and not (loop_yaml.parent / "loop").exists()

    process = bootstrap(loop_yaml, "--json")
    assert process.returncode == 0, process.stderr[-2000:]
    summary = json.loads(process.stdout)
    assert summary["round-1"]["texts_kept"] == 12 and 0 <= summary["round-1"]["retrieval"]["mean_recall"] <= 100
    assert Path(summary["round-1"]["model"], "model.safetensors").is_file()
    assert "<title>round-1" in Path(summary["report"]).read_text()
    table = pq.read_table(loop_yaml.parent / "data" / "filtered" / "round-1" / "00000.parquet")
    assert set(table["source"].to_pylist()) == {"web", "round-1"}

    again = bootstrap(loop_yaml)
    assert again.returncode == 0
    steps = [line for line in again.stderr.splitlines() if "capfilt" in line]
    assert len(steps) == 8 and all(line.startswith("done before:") for line in steps)
    planned = json.loads(bootstrap(loop_yaml, "--dry-run", "--rounds", "2", "--json").stdout)
    assert planned["steps"] == 14 and not planned["unknown"] and planned["hours_left"] > 0

    other = bootstrap(loop_yaml, "--set", "human_share=0.25")
    assert other.returncode == 2 and "human_share: 0.5 -> 0.25" in other.stderr


def test_a_second_run_names_the_first_as_the_writer_of_the_folder(loop_yaml: Path) -> None:
    with lock_folder(loop_yaml.parent / "loop"):
        result = CliRunner().invoke(app, ["bootstrap", str(loop_yaml)])
    assert result.exit_code == 1
    assert f"loop is being written by process {os.getpid()}" in result.stderr and "killed" not in result.stderr


def test_the_time_left_is_estimated_before_the_first_shard_is_done() -> None:
    step = Step(Command("1-filter", ()), "filter", "pictures", 10_000)
    assert format_time_left(step, 100.0, "caption and score: 0 of 4 shards, 10.0 pictures/s") == ", 0:15:00 left"
    assert format_time_left(step, 100.0, "caption and score: 1 of 4 shards, 10.0 pictures/s, 0:12:00 left") == ""
    assert format_time_left(step, 1.0, "loading") == ""
    assert format_time_left(Step(step.command, "report"), 1.0, "9 pictures/s") == ""
