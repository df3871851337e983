"""`capfilt bootstrap`: one round with tiny models, and the time that is left."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from blipcore.io.lock import lock_folder
from capfilt.bootstrap.plan import BootstrapConfig, Step
from capfilt.bootstrap.run import format_time_left
from capfilt.cli import app
from capfilt.config import resolve, to_dict
from capfilt.engine.commands import Command


def bootstrap(config: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["bootstrap", str(config), *options])


def test_a_finished_round_is_skipped_and_another_can_follow(loop_yaml: Path) -> None:
    planned = bootstrap(loop_yaml, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.stderr[-2000:]
    assert json.loads(planned.stdout)["unknown"][0] == "filter"
    assert not (loop_yaml.parent / "loop").exists()

    process = bootstrap(loop_yaml, "--json")
    assert process.exit_code == 0, process.stderr[-2000:]
    summary = json.loads(process.stdout)
    assert summary["round-1"]["texts_kept"] == 12 and 0 <= summary["round-1"]["retrieval"]["mean_recall"] <= 100
    assert 0 <= summary["round-1"]["finetuned"]["retrieval"]["mean_recall"] <= 100
    assert summary["round-1"]["gauges"]["kept_share_captions"] == 1.0
    assert Path(summary["round-1"]["model"], "model.safetensors").is_file()
    best = max((0, 1), key=lambda number: (summary[f"round-{number}"]["held_out"], -number))
    assert summary["best"] == f"round-{best}" and summary["chosen_by"] == "retrieval"
    published = loop_yaml.parent / "loop" / "best"
    assert (published / "model").resolve() == Path(summary[summary["best"]]["model"]).resolve()
    assert (published / "captioner" / "model.safetensors").is_file()
    assert "<title>round-1" in Path(summary["report"]).read_text()
    table = pq.read_table(loop_yaml.parent / "data" / "filtered" / "round-1" / "00000.parquet")
    assert set(table["source"].to_pylist()) == {"web", "round-1"}

    again = bootstrap(loop_yaml)
    assert again.exit_code == 0
    steps = [line for line in again.stderr.splitlines() if "capfilt" in line]
    assert len(steps) == 12 and all(line.startswith("done before:") for line in steps)
    planned = json.loads(bootstrap(loop_yaml, "--dry-run", "--rounds", "2", "--json").stdout)
    assert planned["steps"] == 20 and planned["unknown"] == ["frozen-filter"] and planned["hours_left"] > 0

    other = bootstrap(loop_yaml, "--set", "human_share=0.25")
    assert other.exit_code == 2 and "human_share: 0.5 -> 0.25" in other.stderr


@pytest.mark.slow
def test_a_second_round_judges_the_captions_of_both(loop_yaml: Path) -> None:
    process = bootstrap(loop_yaml, "--rounds", "2", "--json")
    assert process.exit_code == 0, process.stderr[-2000:]
    summary = json.loads(process.stdout)
    filtered = loop_yaml.parent / "data" / "filtered"
    for name, sources in (("round-2", {"web", "round-1", "round-2"}), ("round-2-frozen", {"round-2"})):
        assert set(pq.read_table(filtered / name / "00000.parquet")["source"].to_pylist()) == sources
    gauges = summary["round-2"]["gauges"]
    assert 0 <= gauges["kept_share_by_first_filter"] <= 1 and gauges["kept_share_captions"] == 1.0
    assert {"value", "low", "high"} == summary["round-2"]["rise"].keys()
    assert "round-2: held-out" in process.stderr and summary["best"] in summary


def test_the_folder_of_an_earlier_version_is_continued_only_as_it_was(loop_yaml: Path) -> None:
    """Its rounds filter their own captions alone; mixing both kinds of rounds would go unnoticed."""
    config = resolve(BootstrapConfig, loop_yaml)
    new = ("out", "rounds", "validation", "accumulate", "frozen_filter", "stop")
    folder = loop_yaml.parent / "loop"
    folder.mkdir()
    (folder / "bootstrap.json").write_text(json.dumps(to_dict(config, without=new)))
    refused = bootstrap(loop_yaml)
    assert refused.exit_code == 2 and "set accumulate: false to continue it" in refused.stderr
    with lock_folder(folder):  # a run with the old rule gets as far as the lock
        continued = bootstrap(loop_yaml, "--set", "accumulate=false")
    assert "is being written" in continued.stderr


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
