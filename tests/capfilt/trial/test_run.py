"""Trials from the command line: the result of planted scores, resumed runs, dry runs, and one with real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_pictures import write_colours
from in_process import Work, run_in_process
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.engine.commands import Command


def planted(better: dict[str, float]) -> Work:
    """Return work that writes scores; those of the set with a name of `better` are higher by its value."""
    pictures = np.random.default_rng(0).normal(200, 30, 200)

    def work(command: Command) -> dict[str, Any]:
        if command.arguments[0] != "evaluate":
            return {"images_per_second": 100.0}
        scores = Path(command.arguments[-1].removeprefix("scores="))
        _, name, replicate = scores.parent.name.split("-")
        rng = np.random.default_rng([ord(scores.parent.name[0]), int(replicate)])
        values = pictures + better.get(name, 0.0) + rng.normal(0, 2) + rng.normal(0, 20, len(pictures))
        rows: list[dict[str, Any]] = [{"image_id": n, "cider": value} for n, value in enumerate(values)]
        if command.arguments[1] == "retrieval":
            rows = [{"image_id": n, "text_rank": n % 3, "image_ranks": [n % 7, None]} for n in range(50)]
        scores.parent.mkdir(parents=True, exist_ok=True)
        scores.write_text(json.dumps(rows))
        return {"pictures": len(rows)}

    return work


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("good", "bad", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "test.json").write_text("[]")
    monkeypatch.setattr("capfilt.trial.run.check_inputs", lambda config: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trial(*arguments: str) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(app, ["trial", *arguments, "--json"])
    return result.exit_code, json.loads(result.stdout or "{}"), result.stderr


def test_a_planted_difference_is_found_and_an_equal_set_is_not(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch, planted({"good": 25.0}))
    code, summary, stderr = trial("bad", "good", "other", "--test", "test.json", "--out", "o")
    assert code == 0, stderr
    caption, control, *retrieval = summary["differences"]
    assert caption["clear"] and 15 < caption["low"] < caption["difference"] < caption["high"] < 35
    assert not control["clear"] and control["low"] < 0 < control["high"]
    assert [row["difference"] for row in retrieval] == [0, 0]
    better, unclear = summary["conclusion"][:2]
    assert better.startswith("CIDEr: good is better than bad, by +2") and "95% interval +" in better
    assert unclear.startswith("CIDEr: this trial cannot tell other and bad apart: the difference is ")
    assert better in stderr and "●" in stderr and "│" in stderr
    assert {"result.html", "result.svg", "result.json", "trial.json"} <= {path.name for path in Path("o").iterdir()}
    page = Path(summary["page"]).read_text()
    assert page.count("<svg") == 1 and "good is better than bad" in page and Path(summary["plot"]).read_text() in page


def test_a_trial_resumes_and_takes_more_seeds(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("bad", "good", "--test", "caption=test.json", "--out", "o")
    work = planted({"good": 25.0})

    def fail(command: Command) -> dict[str, Any]:
        if command.name == "2-good-1-evaluate-caption":
            raise KeyboardInterrupt
        return work(command)

    run_in_process(monkeypatch, fail)
    assert trial(*arguments, "--seeds", "2")[0] == 130
    names = run_in_process(monkeypatch, work)
    assert trial(*arguments, "--seeds", "2")[0] == 0 and names == ["2-good-1-evaluate-caption"]
    names.clear()
    assert trial(*arguments, "--seeds", "3")[0] == 0
    assert names == [f"{name}-2-{step}" for name in ("1-bad", "2-good") for step in ("pretrain", "evaluate-caption")]
    code, _, stderr = trial(*arguments, "--seeds", "3", "--steps", "5")
    assert code == 2 and "holds a trial with other settings (steps" in stderr


def test_dry_run_gives_hours_once_a_run_has_ended(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("bad", "good", "--test", "caption=test.json", "--out", "o", "--seeds", "2", "--steps", "9000")
    code, summary, _ = trial(*arguments, "--dry-run")
    assert code == 0 and (summary["commands"], summary["hours_left"], summary["unknown"]) == (8, None, ["pretrain"])
    assert not Path("o").exists()
    work = planted({})

    def fail(command: Command) -> dict[str, Any]:
        if command.name == "2-good-0-pretrain":
            raise KeyboardInterrupt
        return work(command)

    run_in_process(monkeypatch, fail)
    assert trial(*arguments)[0] == 130
    assert trial(*arguments, "--dry-run")[1]["hours_left"] == pytest.approx(3 * 9000 * 32 / 100 / 3600, abs=1e-3)


def test_inputs_are_checked_before_anything_runs(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_in_process(monkeypatch, planted({}))
    for arguments, message in [
        (("bad", "--test", "test.json"), "compares at least two sets"),
        (("bad", "good"), "give --test FILE"),
        (("bad", "good", "--test", "test.json", "--set", "pretrain.preset=huge"), "pretrain: "),
    ]:
        code, _, stderr = trial(*arguments)
        assert code == 2 and message in stderr.replace("\n", " ")
    assert names == [] and not Path("trial").exists()


def test_names_of_sets_are_escaped(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch, planted({}))
    (inputs / "<b>[red]x").mkdir()
    code, summary, stderr = trial("bad", "<b>[red]x", "--test", "caption=test.json", "--out", "o", "--seeds", "2")
    assert code == 0 and "<b>[red]x" in stderr
    assert "<b>" not in Path(summary["page"]).read_text()


def test_every_input_is_opened_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_in_process(monkeypatch, planted({}))
    monkeypatch.chdir(tmp_path)
    good = str(write_colours(tmp_path))
    Path("empty").mkdir()
    Path("broken.json").write_text("{")
    rows = json.loads(Path(good).read_text())
    Path("no_texts.json").write_text(json.dumps([{"image": row["image"]} for row in rows]))
    Path("no_picture.json").write_text(json.dumps([{"image": "gone.png", "caption": "a wall"}]))
    for arguments, message in [
        ((good, "nowhere", "--test", good), "Some input files do not exist: nowhere."),
        ((good, "empty", "--test", good), "empty is empty"),
        ((good, good, "--human", "broken.json", "--test", good), "broken.json"),
        ((good, good, "--test", f"caption={good}", "--test", "retrieval=no_texts.json"), "no_texts.json has"),
        ((good, good, "--test", "caption=no_picture.json"), "gone.png"),
    ]:
        code, _, stderr = trial(*arguments)
        assert code == 2 and message in stderr.replace("\n", " ") and "Traceback" not in stderr, stderr
    assert names == [] and not Path("trial").exists()


@pytest.mark.slow
def test_real_models_are_trained_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch)
    colours = str(write_colours(tmp_path))
    (tmp_path / "trial.yaml").write_text(
        "pretrain: {preset: tiny, tokenizer: 'train:80', model: {vision: {image_size: 32}}, "
        "task: {queue_size: 8}, train: {batch_size: 4, device: cpu}}\n"
        "finetune_captioner: {train: {batch_size: 4, device: cpu}}\n"
        "finetune_filter: {retrieval: {queue_size: 8}, train: {batch_size: 4, device: cpu}}\n"
        "evaluate: {words: plain, k: 3, device: cpu, generate: {mode: greedy, max_length: 8}}\n"
    )
    arguments = [colours, colours, "--human", colours, "--test", colours, "--config", str(tmp_path / "trial.yaml")]
    arguments += ["--seeds", "2", "--steps", "2", "--finetune-steps", "1", "--out", str(tmp_path / "o")]
    code, summary, stderr = trial(*arguments)
    assert code == 0, stderr
    assert [row["score"] for row in summary["differences"]] == ["CIDEr", "mean recall"]
    assert not any(row["clear"] for row in summary["differences"])
