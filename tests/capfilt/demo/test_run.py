"""`capfilt demo --quick` as a user runs it, and a second time."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from blipcore.model.tokenizer import Tokenizer, clean_caption
from capfilt.demo import art
from capfilt.demo.chinese import is_chinese
from capfilt.demo.language import write_caption
from capfilt.demo.plan import TABLES, DemoConfig, DemoPlan, Recipe
from capfilt.demo.run import Demo, run_demo
from capfilt.demo.scenes import sample_scene


def demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "capfilt", "demo", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    pytest.importorskip("resvg_py")
    pytest.importorskip("pycocoevalcap")
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo(out, "--quick", "--json")


def test_it_ends_with_a_summary_of_every_row(finished):
    out, process = finished
    assert process.returncode == 0, process.stderr[-2000:]
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    printed = json.loads(process.stdout)
    assert printed.pop("peak_memory_gb")["largest_child"] > 0
    assert printed == summary
    for row in ("noisy", "bootstrapped"):
        for measure in ("exact_match", "object_f1", "mean_recall"):
            estimate = summary["rows"][row]["finetuned"][measure]
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 100
    assert summary["differences"].keys() == {"bootstrapped - noisy"}
    assert summary["filter"]["web"]["texts"] > 200
    assert len(summary["samples"]) == 6
    assert all((out / "samples" / sample["picture"]).stat().st_size for sample in summary["samples"])
    assert "<svg" in (out / "result.svg").read_text()
    assert "<title>bootstrapped" in (out / "report.html").read_text()


def test_it_prints_the_commands_it_runs(finished):
    _, process = finished
    printed = [line for line in process.stderr.splitlines() if line.startswith("$ capfilt ")]
    commands = [line.split()[2] for line in printed]
    assert commands[:4] == ["download", "pretrain", "finetune", "finetune"]
    assert sorted(commands[4:]) == ["caption", *["evaluate"] * 4, "filter", *["finetune"] * 3, "pretrain"]
    assert (finished[0] / "best" / "captioner" / "model.safetensors").is_file()


def test_every_url_has_an_outcome_and_every_text_a_verdict(finished):
    out, _ = finished
    images = pq.read_table(sorted((out / "data").glob("*.parquet"))).to_pylist()
    assert len(images) == 240
    assert {row["status"] for row in images} > {"ok", "not_found"}
    downloaded = sum(row["status"] == "ok" for row in images)
    pairs = pq.read_table(sorted((out / "data" / "filtered" / "bootstrapped").glob("*.parquet"))).to_pylist()
    assert len(pairs) == 4 * downloaded  # a web text and three captions
    assert all(row["reason"] == "kept" if row["keep"] else row["reason"] != "kept" for row in pairs)


def test_training_never_reads_the_truth(finished):
    out, _ = finished
    for path in (out / "runs").glob("*/config.yaml"):
        assert "truth" not in path.read_text()
    columns = pq.read_schema(out / "data" / "filtered" / "bootstrapped" / "00000.parquet").names
    assert {"kind", "matches", "scene"}.isdisjoint(columns)


def test_a_finished_demo_runs_no_command_again(finished):
    out, _ = finished
    again = demo(out, "--quick")
    assert again.returncode == 0
    assert "$ capfilt" not in again.stderr


def test_another_seed_in_the_same_folder_is_refused(finished):
    out, _ = finished
    other = demo(out, "--quick", "--seed", "7")
    assert other.returncode == 2
    assert "seed: 0 -> 7" in other.stderr and "Traceback" not in other.stderr


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no demo"):
        run_demo(DemoConfig(out=tmp_path))


def test_scale_changes_pictures_and_steps_but_not_the_test_set():
    one, two = Recipe.from_config(DemoConfig()), Recipe.from_config(DemoConfig(scale=2.0))
    assert (two.web, two.pretrain_steps) == (2 * one.web, 2 * one.pretrain_steps)
    assert (two.validation, two.test) == (one.validation, one.test)


def demo_of(tmp_path: Path, **settings: Any) -> Demo:
    return Demo(DemoConfig(out=tmp_path / "demo", **settings), Console())


def test_no_command_of_a_plan_is_planned_twice_or_needs_an_unknown_one(tmp_path):
    demo = demo_of(tmp_path, rows="all", rounds=3, table=list(TABLES))
    planned = [*demo.first_commands(), *demo.further_commands()]
    names = [command.command.name for command in planned]
    # The second half begins with round 1 and the control, whose first commands have ended in the first half.
    twice = {name for name in names if names.count(name) > 1}
    assert twice <= {"caption", "filter-bootstrapped", "pretrain-human_only"}
    for command in planned:
        outputs = [value for option, value in pairwise(command.command.arguments) if option in ("--init", "--model")]
        for path in outputs:  # each model that a command reads is written by one that it needs
            run = Path(path).parent.name
            assert {f"pretrain-{run}", f"finetune-{run}"} & set(names), path
            assert {f"pretrain-{run}", f"finetune-{run}"} & set(command.needs), (command.command.name, path)


def test_each_round_starts_from_the_models_of_the_one_before(tmp_path):
    plan = DemoPlan(DemoConfig(out=tmp_path, rounds=2))
    arguments = plan.filter_round(2).command.arguments
    assert str(tmp_path / "runs" / "bootstrapped-filter" / "model") in arguments
    sources = [value for option, value in pairwise(arguments) if option == "--sources"]
    assert sources == ["web", "captioner", "captioner2"]  # captions of earlier rounds accumulate
    assert str(tmp_path / "runs" / "filter" / "model") in plan.judge_with_first_filter(2).command.arguments


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"table": [5]}, "table is one of 2, 3, 4, 12, 13"), ({"rounds": 0}, "rounds"), ({"scale": 0}, "scale")],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DemoConfig(**settings)


def test_chinese_captions_survive_tokenization():
    """The tokenizer of the Chinese demo loses and truncates no character."""
    texts = [write_caption(sample_scene(0, "human", i, art.nouns(48)), Random(i), lang="zh") for i in range(300)]
    tokenizer = Tokenizer.train(texts, 1000)
    clean = [clean_caption(text) for text in texts]
    ids, mask = tokenizer(clean, max_length=30)
    assert tokenizer.unk not in ids
    assert [tokenizer.decode(row) for row in ids] == clean == texts
    assert mask.sum(1).max() <= 30


@pytest.mark.slow
def test_the_whole_loop_in_chinese(tmp_path):
    pytest.importorskip("resvg_py")
    out = tmp_path / "demo"
    process = demo(out, "--quick", "--lang", "zh")
    assert process.returncode == 0, process.stderr[-2000:]
    pairs = pq.read_table(sorted((out / "data" / "filtered" / "bootstrapped").glob("*.parquet"))).to_pylist()
    web = [row["text"] for row in pairs if row["source"] == "web" and is_chinese(row["text"] or "")]
    assert len(web) > len(pairs) / 4
    captions = json.loads((out / "runs" / "bootstrapped" / "captions.json").read_text())
    assert any(is_chinese(row["caption"]) for row in captions)
    assert json.loads((out / "summary.json").read_text())["config"]["lang"] == "zh"
