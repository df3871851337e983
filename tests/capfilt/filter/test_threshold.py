"""Thresholds: chosen for a target on labels or for a share of the texts, and reported with exact intervals."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from filtered_set import write_set
from folders import rows_of
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.filter.config import FilterConfig
from capfilt.filter.logistic import FOLDS
from capfilt.filter.stage import explain_thresholds, filter_shards
from capfilt.filter.strata import Strata
from capfilt.filter.threshold import DecidedTexts, choose_by_fraction, choose_by_target, describe_threshold
from capfilt.shards.manifest import read_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawn) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data", drawn)


def run(data: Path, name: str, **options) -> tuple[dict, list[dict]]:
    summary = filter_shards(FilterConfig(data=str(data), scores="s", name=name, **options), progress=False)
    return summary, rows_of(data / "filtered" / name)


@pytest.fixture(scope="module")
def labels(data: Path) -> Path:
    """Label every second scored text; the chance of a match rises with ITM."""
    _, rows = run(data, "for_labels", threshold=0)
    rng, path = np.random.default_rng(0), data.parent / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["key", "source", "index", "match"], extrasaction="ignore")
        writer.writeheader()
        for row in [row for row in rows if row["keep"]][::2]:
            writer.writerow(row | {"match": int(rng.random() < 0.15 + 0.85 * row["itm"])})
    return path


def precision_and_recall(labels: Path, rows: list[dict]) -> tuple[float, float]:
    """Return precision and recall of the kept rows on the labels."""
    keep = {(row["key"], row["source"]): row["keep"] for row in rows}
    with labels.open(newline="") as file:
        pairs = [(keep[row["key"], row["source"]], row["match"] == "1") for row in csv.DictReader(file)]
    right = sum(kept and match for kept, match in pairs)
    return right / sum(kept for kept, _ in pairs), right / sum(match for _, match in pairs)


def texts_of(
    values: np.ndarray, label: np.ndarray, fold: np.ndarray | None = None, total: int | None = None
) -> DecidedTexts:
    """Return web texts with ITM `values` and labels 1, 0 or -1 (none)."""
    row, number = np.flatnonzero(label >= 0), len(values)
    fold = np.arange(number) % FOLDS if fold is None else fold
    match, zeros = label[row] == 1, np.zeros(number, int)
    strata = Strata(["length"], ["web"], {"length": []})
    return DecidedTexts(
        "itm", total or number, values, zeros, ["web"], zeros, strata, False, row, match, values[row], fold[row]
    )


@pytest.mark.parametrize(("target", "measure", "share"), [("precision=0.8", 0, 0.8), ("recall=0.9", 1, 0.9)])
def test_auto_reaches_its_target_on_the_labels(
    data: Path, labels: Path, target: str, measure: int, share: float
) -> None:
    name = target.replace("=", "")
    summary, rows = run(data, name, threshold="auto", score="itm", labels=str(labels), target=target)
    assert precision_and_recall(labels, rows)[measure] >= share
    assert read_manifest(Path(summary["out"]))["config"]["limits"] == {"itm": summary["threshold"]}
    assert summary["why"].startswith(f"reaches {target.replace('=', ' ')} on the ")
    assert "on pictures that a threshold was not chosen on" in summary["why"]


def test_the_stated_precision_of_a_chosen_threshold_is_not_too_high() -> None:
    """Draw 120 sets of labels from one population.

    The precision on folds that a threshold was not chosen on is not too high, and its interval mostly holds the truth;
    the precision on the labels that it was chosen on is too high.
    """
    rng = np.random.default_rng(3)

    def draw(number: int) -> np.ndarray:
        return rng.beta(0.6, 0.6, number).astype(np.float32).astype(float)

    def chance(itm: np.ndarray) -> np.ndarray:
        return 0.4 + 0.3 * itm

    population = np.sort(draw(20_000))
    # the true precision of a threshold at each of the sorted scores
    precision = np.cumsum(chance(population)[::-1])[::-1] / np.arange(len(population), 0, -1)
    errors: dict[str, list[float]] = {"held out": [], "selection": []}
    intervals = covering = 0
    while intervals < 120:
        itm = draw(120)
        label = (rng.random(120) < chance(itm)).astype(np.int8)
        try:
            threshold, description = choose_by_target(texts_of(itm, label), "precision=0.65")
        except ValueError:  # no threshold reaches the target on these labels
            continue
        truth = precision[min(np.searchsorted(population, threshold), len(population) - 1)]
        found = re.search(r"precision (\S+), 95% confidence interval (\S+) to (\S+?);", description)
        if found is None:  # nothing is kept
            continue
        held_out, low, high = map(float, found.groups())
        intervals += 1
        covering += low <= truth <= high
        errors["held out"].append(held_out - truth)
        errors["selection"].append(label[itm >= threshold].mean() - truth)
    assert covering / intervals >= 0.85
    assert np.mean(errors["selection"]) > 0.01
    assert np.mean(errors["held out"]) < 0


def test_a_precision_target_takes_the_lowest_threshold_and_a_recall_target_the_highest() -> None:
    texts = texts_of(np.arange(1, 9) / 10, np.array([0, 0, 1, 0, 1, 1, -1, 1]))
    assert choose_by_target(texts, "precision=0.8")[0] == 0.3  # 4 of the 5 labelled ones at or above it
    assert choose_by_target(texts, "precision=1")[0] == 0.5
    assert choose_by_target(texts, "recall=0.75")[0] == 0.5
    assert choose_by_target(texts, "recall=1")[0] == 0.3
    assert "of the 3 labelled texts kept match" in describe_threshold(texts, 0.5)
    with pytest.raises(
        ValueError, match=r"No threshold of itm reaches precision 0.9 .*; the highest precision is 0.500, at 0.1"
    ):
        choose_by_target(texts_of(np.array([0.1, 0.9]), np.array([1, 0])), "precision=0.9")


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5])
def test_a_top_fraction_keeps_the_texts_with_the_highest_itm(data: Path, fraction: float) -> None:
    summary, rows = run(data, f"top{fraction}", top_fraction=fraction)
    number = round(fraction * len(rows))
    itm = sorted((row["itm"] for row in rows if row["itm"] is not None and row["reason"] != "duplicate"), reverse=True)
    assert summary["kept"] == sum(value >= itm[number - 1] for value in itm) >= number  # equal scores are kept together
    assert {row["itm"] for row in rows if row["keep"]} <= set(itm[: summary["kept"]])


def test_a_top_fraction_above_the_usable_texts_keeps_all_of_them() -> None:
    texts = texts_of(np.array([0.2, 0.2, 0.9]), np.full(3, -1), total=10)
    assert choose_by_fraction(texts, 0.9)[0] <= 0.2
    assert 0.2 < choose_by_fraction(texts, 0.1)[0] <= 0.9
    with pytest.raises(ValueError, match="keeps none of the 10 texts"):
        choose_by_fraction(texts, 0.01)


def test_texts_that_pass_every_threshold_are_no_top_fraction() -> None:
    texts = texts_of(np.array([np.inf, np.inf, -2.0, -3.0]), np.full(4, -1), total=4)
    assert choose_by_fraction(texts, 0.75)[0] == -2.0
    with pytest.raises(
        ValueError, match=r"2 of 4 texts have no itm and pass every threshold, so none reaches a top fra"
    ):
        choose_by_fraction(texts, 0.5)


def test_explain_agrees_with_filter_and_writes_nothing(data: Path, labels: Path) -> None:
    before = {path.name for path in (data / "filtered").iterdir()}
    config = FilterConfig(data=str(data), scores="s", threshold=0.37, clip_threshold=0.2, best=1, labels=str(labels))
    explained = explain_thresholds(config, progress=False)
    assert {path.name for path in (data / "filtered").iterdir()} == before
    for number, row in enumerate(explained["thresholds"]):
        if row["threshold"] in (0.0, 0.37, 0.9):
            options = {"clip_threshold": 0.2, "best": 1, "labels": str(labels), "threshold": row["threshold"]}
            summary, rows = run(data, f"explained{number}", **options)
            assert row["kept"] == summary["kept"]
            assert row["by_source"] == {source: totals["kept"] for source, totals in summary["by_source"].items()}
            if row["kept"]:
                assert row["precision"]["share"] == pytest.approx(precision_and_recall(labels, rows)[0])
    result = CliRunner().invoke(app, ["filter", str(data), "--scores", "s", "--explain", "--threshold", "0.37"])
    assert result.exit_code == 0, result.output
    assert "*0.37" in result.stdout and "precision" not in result.stdout


def test_a_threshold_is_printed_with_all_its_digits(data: Path) -> None:
    for threshold in ("0.9999998", "0.37", "0", "1"):
        options = ["--scores", "s", "--name", f"typed{threshold}", "--threshold", threshold]
        output = CliRunner().invoke(app, ["filter", str(data), *options]).stdout
        assert re.search(rf"^threshold +{threshold}$", output, re.MULTILINE), output
        assert threshold == "0" or f"itm<{threshold} " in output
        explained = CliRunner().invoke(app, ["filter", str(data), *options, "--explain"]).stdout
        assert f"*{threshold} " in explained


def test_labels_without_a_scored_text_are_counted(data: Path, labels: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(labels.read_text() + "nobody,web,0,1\nnothing,web,0,0\n")
    summary, _ = run(data, "unknown", labels=str(tmp_path / "more.csv"))
    assert summary["why"].endswith("; 2 labels have no scored text")
    assert "no scored text" not in run(data, "unknown", labels=str(labels))[0]["why"]


def test_errors_are_one_sentence(data: Path, tmp_path: Path) -> None:
    def message(text: str | None = None, name: str = "labels.csv", **options) -> str:
        if text is not None:
            (tmp_path / name).write_text(text)
            options["labels"] = str(tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            run(data, "never", **({"threshold": "auto"} | options))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "threshold auto needs labels" in message()
    assert "not both" in message(top_fraction=0.5, threshold=0.7)
    assert "top_fraction must be above 0" in message(top_fraction=1.5, threshold=0.5)
    assert "target is precision=SHARE or recall=SHARE" in message("key,match\n", target="f1=0.9")
    assert "None of the 1 labelled texts has a score" in message("key,match\nnobody,1\n")
    assert "calls no text right or wrong" in message("key,match\n")
    assert "its name must end in .csv" in message("x", "labels.xlsx")
    assert "threshold must be a probability from 0 to 1, or auto, not 2" in message(threshold=2.0)
    assert not (data / "filtered" / "never").exists()


def test_a_threshold_is_not_chosen_on_proposed_texts(data: Path, labels: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(labels.read_text().splitlines()))
    path = tmp_path / "proposed.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "drawn"])
        writer.writeheader()
        writer.writerows(row | {"drawn": "uncertain"} for row in rows)
    with pytest.raises(ValueError, match="No labelled text was drawn at random"):
        run(data, "proposed", threshold="auto", score="itm", labels=str(path))
    assert run(data, "measured", labels=str(path))[0]["signal"].startswith("no labelled text was drawn at random")
