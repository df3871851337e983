"""`finetune retrieval --labels`: a filter's ITM head learned from labels, and its figures on held-out labels."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filter_runs import rows, run
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from blipcore.data.judged_texts import JudgedTexts
from blipcore.io.samples import TarSample
from capfilt.cli import app
from capfilt.filter.choose import read_decided
from capfilt.filter.config import FilterConfig
from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.head import HeadConfig, learn_head
from capfilt.filter.labels import read_labels
from capfilt.shards.format import write_shard


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, tiny_filter: Path, drawn: Callable[[int], TarSample]) -> Path:
    """Label the web texts of 60 pictures by a filter with another head, and learn that head from the labels."""
    root = tmp_path_factory.mktemp("taught")
    write_shard(root / "data" / "00000.tar", [drawn(number) for number in range(60)])
    run(root / "data", tiny_filter, name="r1", threshold=0.0)
    shutil.copytree(tiny_filter, root / "teacher")
    state = load_file(root / "teacher/model.safetensors")
    head = state["itm_head.weight"]
    state["itm_head.weight"] = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    save_file(state, root / "teacher/model.safetensors", metadata={"format": "pt"})
    scored = rows(run(root / "data", root / "teacher", name="t", threshold=0.0))
    median = np.median([row["itm"] for row in scored])
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "match"])
        writer.writerows([row["key"], int(row["itm"] > median)] for row in scored)
    learn_head(config(root, tiny_filter))
    return root


def config(root: Path, init: Path, **options: Any) -> HeadConfig:
    settings = {"out": root / "run", "device": "cpu", "dtype": "fp32"} | options
    return HeadConfig([str(root / "data" / "filtered" / "r1")], str(root / "labels.csv"), str(init), **settings)


def test_only_the_itm_head_changes_and_it_tells_the_labels_apart(taught: Path, tiny_filter: Path) -> None:
    before, after = load_file(tiny_filter / "model.safetensors"), load_file(taught / "run/model/model.safetensors")
    assert before.keys() == after.keys()
    assert {name for name in before if not before[name].equal(after[name])} == {"itm_head.weight", "itm_head.bias"}
    summary = json.loads((taught / "run/summary.json").read_text())
    assert summary["labels"] == {"used": 60, "without_text": 0} and summary["no_signal"] is None
    scored = {
        row["key"]: row["itm"] for row in rows(run(taught / "data", taught / "run/model", name="r2", threshold=0))
    }
    labels = read_labels(taught / "labels.csv")
    right, wrong = ([scored[row["key"]] for row in labels.to_pylist() if row["match"] == match] for match in (1, 0))
    assert np.mean(right) > np.mean(wrong) + 0.2


def test_labels_of_the_run_have_scores_of_heads_that_have_not_seen_the_picture(taught: Path) -> None:
    labels = pq.read_table(taught / "run/labels.parquet").to_pylist()
    scored = {
        row["key"]: row["itm"] for row in rows(run(taught / "data", taught / "run/model", name="r3", threshold=0))
    }
    sure = [abs(row["itm"] - row["match"]) - abs(scored[row["key"]] - row["match"]) for row in labels]
    assert np.mean(sure) > 0  # a head is surer of the labels that it was trained on
    judged = JudgedTexts(taught / "run/labels.parquet")
    assert sum(judged.counts) == 60 and judged.read(0, judged.load(0)[0])


@pytest.mark.parametrize("name", ["labels.csv", "run/labels.parquet"])
def test_filter_does_not_measure_a_filter_on_what_it_was_trained_on(taught: Path, name: str) -> None:
    held_out = {row["key"]: row["itm"] for row in pq.read_table(taught / "run/labels.parquet").to_pylist()}
    model = str(taught / "run/model")
    summary = run(
        taught / "data", Path(model), name=f"by-{Path(name).stem}-{Path(name).suffix}", labels=str(taught / name)
    )
    assert "was trained on 60 of these labels" in summary["signal"]
    labels = read_labels(taught / name)
    right = sum(
        held_out[key] >= 0.5 and match
        for key, match in zip(labels["key"].to_pylist(), labels["match"].to_pylist(), strict=True)
    )
    assert f"{right} of the 30 matching texts are kept" in summary["why"]
    other = run(
        taught / "data", None, name=f"other-{Path(name).suffix}", scores=scores_name(taught), labels=str(taught / name)
    )
    assert "was trained on" not in other["signal"]


def scores_name(root: Path) -> str:
    """Return the name of the scores of the filter before it was taught."""
    return Path(json.loads((root / "data/filtered/r1/manifest.json").read_text())["parents"][0]).name


def test_a_finished_run_is_not_repeated_and_another_one_is_refused(taught: Path, tiny_filter: Path) -> None:
    changed = (taught / "run/model/model.safetensors").stat().st_mtime_ns
    summary = learn_head(config(taught, tiny_filter))
    assert summary["model"] == str(taught / "run/model")
    assert (taught / "run/model/model.safetensors").stat().st_mtime_ns == changed
    lines = (taught / "labels.csv").read_text().splitlines()
    (taught / "fewer.csv").write_text("\n".join(lines[:-1]) + "\n")
    other = config(taught, tiny_filter)
    other.labels = str(taught / "fewer.csv")
    with pytest.raises(ValueError, match="other settings"):
        learn_head(other)


def test_a_run_with_too_few_labels_leaves_its_folder_to_the_next(
    taught: Path, tiny_filter: Path, tmp_path: Path
) -> None:
    lines = (taught / "labels.csv").read_text().splitlines()
    (taught / "few.csv").write_text("\n".join(lines[:6]) + "\n")
    few = config(taught, tiny_filter, out=tmp_path / "run")
    few.labels = str(taught / "few.csv")
    with pytest.raises(ValueError, match="learning needs at least 10 of each"):
        learn_head(few)
    learn_head(config(taught, tiny_filter, out=tmp_path / "run"))
    assert (tmp_path / "run/labels.parquet").read_bytes() == (taught / "run/labels.parquet").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no filter learned from labels"):
        learn_head(config(taught, tiny_filter, out=tmp_path / "other"))


def test_an_unreadable_picture_is_left_out_and_named(taught: Path, tiny_filter: Path, tmp_path: Path) -> None:
    """The picture of a labelled text has gone from its tar."""
    tar = taught / "data" / "00000.tar"
    data = tar.read_bytes()
    try:
        tar.write_bytes(data[: len(data) * 3 // 4 // 512 * 512])
        summary = learn_head(config(taught, tiny_filter, out=tmp_path / "run"))
        tar.write_bytes(b"")
        with pytest.raises(ValueError, match=r"No picture of the labelled texts can be read, first 00000\.tar/"):
            learn_head(config(taught, tiny_filter, out=tmp_path / "other"))
    finally:
        tar.write_bytes(data)
    assert 5 < summary["unreadable"] < 30
    assert summary["labels"]["used"] == 60 - summary["unreadable"]
    assert all(name.startswith("00000.tar/") for name in summary["problems"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "caption", "SET", "--labels", "LABELS"], "--labels trains a filter"),
        (["finetune", "retrieval", "SET", "SET", "--labels", "LABELS"], "give one filtered set"),
        (["finetune", "retrieval", "SET", "--labels", "LABELS", "--steps", "5"], "Unknown setting 'steps'"),
        (["finetune", "retrieval", "SET", "--labels", "LABELS", "--nproc", "2"], "leave out --continue and --nproc"),
        (["finetune", "retrieval", "SET", "--labels", "missing.csv"], "No file of labels at missing.csv"),
        (["finetune", "retrieval", "nothing", "--labels", "LABELS"], "No folder at nothing"),
    ],
)
def test_mistakes_are_one_sentence(
    taught: Path, tiny_filter: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {"SET": str(taught / "data/filtered/r1"), "LABELS": str(taught / "labels.csv")}
    arguments = [names.get(word, word) for word in arguments]
    result = CliRunner().invoke(app, [*arguments, "--init", str(tiny_filter), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_read_decided_uses_the_held_out_scores(taught: Path) -> None:
    from capfilt.filter.find_scores import locate_scores
    from capfilt.filter.score import score_shards
    from capfilt.shards.shard_set import ShardSet

    settings = FilterConfig(
        data=str(taught / "data"),
        model=str(taught / "run/model"),
        device="cpu",
        dtype="fp32",
        labels=str(taught / "labels.csv"),
    )
    images = ShardSet.open(settings.data)
    scored = score_shards(settings, images, locate_scores(settings, images), progress=False)
    texts, mix, _ = read_decided(settings, images, scored, read_labels(taught / "labels.csv"))
    assert mix is None and len(texts.row) == 60
    held_out = np.array([row["itm"] for row in pq.read_table(taught / "run/labels.parquet").to_pylist()])
    assert texts.held_out == pytest.approx(held_out)
    assert not np.allclose(texts.values[texts.row], held_out)


def test_the_mix_is_a_column_of_the_filtered_set(taught: Path) -> None:
    settings = {"threshold": "auto", "labels": str(taught / "labels.csv"), "target": "recall=0.9"}
    summary = run(taught / "data", taught / "run/model", name="m", **settings)
    out = rows(summary)
    data = FilteredSet.open(summary["out"])
    assert data.score == "mix" and data.columns == ["itm", "itc", "mix"] and data.threshold == summary["threshold"]
    assert {row["reason"] for row in out} == {"kept", f"mix<{summary['threshold']}"}
    assert all(row["keep"] == (row["mix"] >= summary["threshold"]) for row in out)
    assert data.manifest["computed"]["mix"]["measured"]["labels"] == 60
    again = run(taught / "data", taught / "run/model", name="m", **settings)
    assert again["shards"]["skipped"] == 1 and again["threshold"] == summary["threshold"]
    best = run(
        taught / "data", taught / "run/model", name="b", threshold=0, labels=str(taught / "labels.csv"), best_of="mix"
    )
    assert FilteredSet.open(best["out"]).columns == ["itm", "itc", "mix"] and best["kept"] == 60
