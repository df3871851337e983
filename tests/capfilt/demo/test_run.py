"""`capfilt demo --quick` as a user runs it, and a second time."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from blipcore.model.tokenizer import Tokenizer, clean_caption
from capfilt.demo import art
from capfilt.demo.chinese import is_chinese
from capfilt.demo.language import write_caption
from capfilt.demo.run import DemoConfig, Recipe, run_demo
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
    for row in ("noisy", "bootstrapped", "human_only"):
        for measure in ("exact_match", "object_f1", "retrieval_mean_recall"):
            assert 0 <= summary[row][measure] <= 100
    assert summary["filter"]["web"]["texts"] > 200
    assert len(summary["samples"]) == 6
    assert all((out / "samples" / sample["picture"]).stat().st_size for sample in summary["samples"])
    assert "<svg" in (out / "result.svg").read_text()
    assert "<title>bootstrapped" in (out / "report.html").read_text()


def test_it_prints_the_commands_it_runs(finished):
    _, process = finished
    printed = [line for line in process.stderr.splitlines() if line.startswith("$ capfilt ")]
    assert [line.split()[2] for line in printed] == [
        "download", *["pretrain"] * 2, *["finetune"] * 2, "caption", "filter", "pretrain", *["evaluate"] * 6
    ]  # fmt: skip


def test_every_url_has_an_outcome_and_every_text_a_verdict(finished):
    out, _ = finished
    images = pq.read_table(sorted((out / "data").glob("*.parquet"))).to_pylist()
    assert len(images) == 240
    assert {row["status"] for row in images} > {"ok", "not_found"}
    downloaded = sum(row["status"] == "ok" for row in images)
    pairs = pq.read_table(sorted((out / "data" / "filtered" / "bootstrapped").glob("*.parquet"))).to_pylist()
    assert len(pairs) == 2 * downloaded
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
