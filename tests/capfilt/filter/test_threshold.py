"""Choosing a threshold: by a target on labels, by a share of the texts, and what each would keep."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filtered_set import write_set
from folders import rows_of
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.filter.config import FilterConfig
from capfilt.filter.labels import _every_second, read_labels
from capfilt.filter.stage import explain_thresholds, filter_shards
from capfilt.filter.threshold import Judged, _shortest, choose_by_share, choose_by_target, exact, measures
from capfilt.shards.format import read_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawn) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data", drawn)


def run(data: Path, name: str, **options) -> tuple[dict, list[dict]]:
    summary = filter_shards(FilterConfig(data=str(data), scores="s", name=name, **options), progress=False)
    return summary, rows_of(data / "filtered" / name)


@pytest.fixture(scope="module")
def labels(data: Path) -> Path:
    """Every second judged text, right the more often the higher its ITM."""
    _, rows = run(data, "for_labels", threshold=0)
    rng, path = np.random.default_rng(0), data.parent / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["key", "source", "index", "match"], extrasaction="ignore")
        writer.writeheader()
        for row in [row for row in rows if row["keep"]][::2]:
            writer.writerow(row | {"match": int(rng.random() < 0.15 + 0.85 * row["itm"])})
    return path


def labelled(data: Path, labels: Path, rows: list[dict], half: int | None = None) -> tuple[float, float]:
    """Precision and recall of the rows that are kept, on all labels or those that auto chooses (0), judges (1) by."""
    keep = {(row["key"], row["source"]): row["keep"] for row in rows}
    held = _every_second(read_labels(labels)["key"])
    with labels.open(newline="") as file:
        said = [
            (keep[row["key"], row["source"]], row["match"] == "1")
            for row, other in zip(csv.DictReader(file), held, strict=True)
            if half in (None, other)
        ]
    right = sum(kept and match for kept, match in said)
    return right / sum(kept for kept, _ in said), right / sum(match for _, match in said)


@pytest.mark.parametrize(("target", "measure", "share"), [("precision=0.8", 0, 0.8), ("recall=0.9", 1, 0.9)])
def test_auto_reaches_its_target_on_the_labels(
    data: Path, labels: Path, target: str, measure: int, share: float
) -> None:
    summary, rows = run(data, target.replace("=", ""), threshold="auto", labels=str(labels), target=target)
    assert labelled(data, labels, rows, 0)[measure] >= share
    told = f"{target.partition('=')[0]} {labelled(data, labels, rows, 1)[measure]:.3f}, with 95% confidence"
    assert told in summary["why"]
    assert read_manifest(Path(summary["out"]))["config"]["limits"] == {"itm": summary["threshold"]}
    assert f"reaches {target.replace('=', ' ')} on " in summary["why"]


def test_a_picture_is_of_one_half_and_the_halves_are_even() -> None:
    keys = pa.chunked_array([[f"{number // 2:09d}" for number in range(200)]])
    held = _every_second(keys)
    assert held.sum() == 100 and (held[::2] == held[1::2]).all()
    assert 15 < held[:100].sum() < 85  # drawn, not the first or the last
    assert (_every_second(keys.slice(100)).sum()) == 50


def test_what_is_said_of_a_chosen_threshold_holds() -> None:
    """400 labelled files of one population: by the labels held back, no bias and intervals that hold; else flattery."""
    rng = np.random.default_rng(3)
    draw = lambda number: rng.beta(0.6, 0.6, number).astype(np.float32).astype(float)  # noqa: E731
    chance = lambda itm: 0.4 + 0.3 * itm  # of a match  # noqa: E731
    population = np.sort(draw(200_000))
    above = np.cumsum(chance(population)[::-1])[::-1] / np.arange(len(population), 0, -1)  # precision from a place on
    error: dict[str, list[float]] = {"held": [], "chosen on": []}
    claims = holds = 0
    while claims < 400:
        itm = draw(120)
        label = (rng.random(120) < chance(itm)).astype(np.int8)
        judged = Judged(120, itm, np.zeros(120, int), label, ["web"], held=np.arange(120) % 2 == 1)
        try:
            threshold, _ = choose_by_target(judged, "precision=0.65")
        except ValueError:  # no threshold reaches it on these labels: nothing is said
            continue
        truth = above[min(np.searchsorted(population, threshold), len(population) - 1)]
        for name, half in (("held", judged.to_judge()), ("chosen on", judged.to_choose())):
            if told := measures(half, threshold).get("precision"):
                error[name].append(told["share"] - truth)
                low, high = told["interval"]
                claims, holds = claims + (name == "held"), holds + (name == "held" and low <= truth <= high)
    assert holds / claims >= 0.95
    assert np.mean(error["chosen on"]) > 0.03
    assert abs(np.mean(error["held"])) < 3 * np.std(error["held"]) / np.sqrt(claims)


def test_precision_keeps_most_and_recall_least() -> None:
    judged = Judged(8, np.arange(1, 9) / 10, np.zeros(8, int), np.array([0, 0, 1, 0, 1, 1, -1, 1], np.int8), ["web"])
    assert choose_by_target(judged, "precision=0.8")[0] == 0.3  # 4 of the 5 labelled ones at or above it
    assert choose_by_target(judged, "precision=1")[0] == 0.5
    assert choose_by_target(judged, "recall=0.75")[0] == 0.5
    assert choose_by_target(judged, "recall=1")[0] == 0.3
    assert measures(judged, 0.5)["precision"]["of"] == 3
    none = Judged(2, np.array([0.1, 0.9]), np.zeros(2, int), np.array([1, 0], np.int8), ["web"])
    with pytest.raises(ValueError, match=r"No threshold reaches precision 0.9 .*: the most is 0.500, at 0.1"):
        choose_by_target(none, "precision=0.9")


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5])
def test_a_share_of_the_texts_is_those_of_the_highest_itm(data: Path, fraction: float) -> None:
    summary, rows = run(data, f"top{fraction}", top_fraction=fraction)
    number = round(fraction * len(rows))
    itm = sorted((row["itm"] for row in rows if row["itm"] is not None and row["reason"] != "duplicate"), reverse=True)
    assert summary["kept"] == sum(value >= itm[number - 1] for value in itm) >= number  # equal ones stay together
    assert {row["itm"] for row in rows if row["keep"]} <= set(itm[: summary["kept"]])


def test_a_share_larger_than_what_can_be_kept_keeps_all_of_it() -> None:
    judged = Judged(10, np.array([0.2, 0.2, 0.9]), np.zeros(3, int), np.full(3, -1, np.int8), ["web"])
    assert choose_by_share(judged, 0.9)[0] <= 0.2
    assert 0.2 < choose_by_share(judged, 0.1)[0] <= 0.9
    with pytest.raises(ValueError, match="keeps no text"):
        choose_by_share(judged, 0.01)


def test_explain_says_what_filter_does_and_writes_nothing(data: Path, labels: Path) -> None:
    before = {path.name for path in (data / "filtered").iterdir()}
    config = FilterConfig(data=str(data), scores="s", threshold=0.37, clip_threshold=0.2, best=1, labels=str(labels))
    told = explain_thresholds(config, progress=False)
    assert {path.name for path in (data / "filtered").iterdir()} == before
    for number, row in enumerate(told["thresholds"]):
        if row["threshold"] in (0.0, 0.37, 0.9):
            options = {"clip_threshold": 0.2, "best": 1, "labels": str(labels), "threshold": row["threshold"]}
            summary, rows = run(data, f"explained{number}", **options)
            assert row["kept"] == summary["kept"]
            assert row["by_source"] == {source: about["kept"] for source, about in summary["by_source"].items()}
            if row["kept"]:
                assert row["precision"]["share"] == pytest.approx(labelled(data, labels, rows)[0])
    result = CliRunner().invoke(app, ["filter", str(data), "--scores", "s", "--explain", "--threshold", "0.37"])
    assert result.exit_code == 0, result.output
    assert "*0.37" in result.stdout and "precision" not in result.stdout


def test_intervals_against_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 5: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for right, whole, low, high in [
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ]:
        assert exact(right, whole) == pytest.approx((low, high), abs=5e-5)
        assert exact(whole - right, whole) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_threshold_is_told_as_it_must_be_typed(data: Path) -> None:
    for threshold in ("0.9999998", "0.37", "0", "1"):
        options = ["--scores", "s", "--name", f"typed{threshold}", "--threshold", threshold]
        told = CliRunner().invoke(app, ["filter", str(data), *options]).stdout
        assert f"threshold    {threshold}\n" in told, told
        assert threshold == "0" or f"itm<{threshold} " in told
        explained = CliRunner().invoke(app, ["filter", str(data), *options, "--explain"]).stdout
        assert f"*{threshold} " in explained


def test_the_shortest_number_parts_texts_the_same() -> None:
    assert _shortest(0.4121, 0.4987) == 0.49
    assert _shortest(-1.0, 0.3) == 0
    assert _shortest(0.3, 0.3000001) == 0.3000001
    rng = np.random.default_rng(1)
    for below, at in np.sort(rng.random((200, 2)).astype(np.float32)).astype(np.float64):
        assert below < _shortest(below, at) <= at


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_labels_come_in_several_kinds(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"labels.{suffix}", [("00012", "c", 1, True), ("00013", "web", 0, False)]
    names = ["key", "source", "index", "match"]
    if suffix == "parquet":
        pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], names), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        separator = "," if suffix == "csv" else "\t"
        path.write_text("\n".join(separator.join(map(str, row)) for row in [names, *rows]) + "\n")
    assert read_labels(path).to_pylist() == [
        {"key": "00012", "source": "c", "index": 1, "match": 1},
        {"key": "00013", "source": "web", "index": 0, "match": 0},
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_label_without_source_and_index_is_of_the_web_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    if suffix == "csv":
        path.write_text("key,source,index,match\n7,,,1\n7,c,1,0\n7,,0,yes\n")
    else:
        path.write_text('{"key": "7", "match": true}\n{"key": "7", "source": "c", "index": 1, "match": false}\n')
    assert read_labels(path).to_pylist() == [
        {"key": "7", "source": "web", "index": 0, "match": 1},
        {"key": "7", "source": "c", "index": 1, "match": 0},
    ]


def test_labels_of_texts_that_are_not_there_are_counted(data: Path, labels: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(labels.read_text() + "nobody,web,0,1\nnothing,web,0,0\n")
    summary, _ = run(data, "strangers", labels=str(tmp_path / "more.csv"))
    assert summary["why"].endswith("; 2 labels are of texts that are not there")
    assert "not there" not in run(data, "strangers", labels=str(labels))[0]["why"]


def test_mistakes_are_one_sentence(data: Path, tmp_path: Path) -> None:
    def mistake(text: str | None = None, name: str = "labels.csv", **options) -> str:
        if text is not None:
            (tmp_path / name).write_text(text)
            options["labels"] = str(tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            run(data, "never", **({"threshold": "auto"} | options))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "threshold auto needs labels" in mistake()
    assert "not both" in mistake(top_fraction=0.5, threshold=0.7)
    assert "top_fraction is a share" in mistake(top_fraction=1.5, threshold=0.5)
    assert "target is precision=SHARE or recall=SHARE" in mistake("key,match\n", target="f1=0.9")
    assert "has no column 'match'; it has key, right" in mistake("key,right\n1,1\n")
    assert "has the label 'maybe'" in mistake("key,match\n1,maybe\n")
    assert "a label without a key" in mistake("key,match\n,1\n") and "key" in mistake('{"match": 1}', "labels.jsonl")
    assert "has a strange index: " in mistake("key,index,match\n1,first,1\n")
    assert "labels 1 web 0 both 1 and 0" in mistake("key,match\n1,1\n2,1\n1,0\n")
    assert "None of the 1 labelled texts is among the scores" in mistake("key,match\nnobody,1\n")
    assert "is not a .csv" in mistake("x", "labels.xlsx")
    assert "cannot be read as .jsonl" in mistake("{", "labels.jsonl")
    assert "threshold is a probability, 0 to 1, or auto, not 2" in mistake(threshold=2.0)
    assert not (data / "filtered" / "never").exists()
