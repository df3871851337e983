"""Merges the summaries of demo runs with several seeds into Markdown tables: the mean, and the range over the seeds.

    for seed in 21 22 23; do capfilt demo --seed $seed --rounds 3 --rows all --out demo$seed; done
    python tests/benchmarks/demo_seeds.py demo21 demo22 demo23

A cell is "mean (lowest to highest)" over the seeds. The last column is half the width of the 95% interval over pictures
of the first figure of the line, averaged over the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from capfilt.demo.tables import ROWS

Summary = dict[str, Any]
MEASURES = {"exact_match": 100, "object_f1": 100, "cider": 1, "mean_recall": 1}
DIFFERENCES = {"exact_match": 100, "cider": 1, "mean_recall": 1}
RECALLS = {"text R@1": "i2t_r@1", "image R@1": "t2i_r@1"}


def merge(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield the lines of all tables."""
    for models in ("finetuned", "zero_shot"):
        yield from table(
            f"Rows, {models}", ["trained on", *MEASURES, *RECALLS, "± pictures"], row_lines(summaries, models)
        )
    yield from table("Differences per picture, finetuned", ["rows", *DIFFERENCES], difference_lines(summaries))
    yield from table("Filter", ["figure", "%", "± pictures"], filter_lines(summaries))
    yield from table("Web texts kept", ["kind", "%", "± pictures"], kind_lines(summaries))
    if all("oracle_gain_reached" in summary for summary in summaries):
        lines = [
            [name, cell(summaries, lambda s, name=name: s["oracle_gain_reached"][name], 100)] for name in DIFFERENCES
        ]
        yield from table("Share of the oracle's gain that is reached", ["measure", "%"], lines)
    if all("rounds" in summary for summary in summaries):
        yield from table(
            "Rounds",
            ["round", "validation CIDEr", "captions kept", "right", "distinct", "bigrams", "rare words"],
            round_lines(summaries),
        )
    seconds = cell(summaries, lambda summary: summary["seconds"], 1)
    yield f"Seeds {', '.join(str(summary['config']['seed']) for summary in summaries)}; seconds {seconds}"


def row_lines(summaries: Sequence[Summary], models: str) -> Iterator[list[str]]:
    for row, label in ROWS.items():
        if not all(models in summary["rows"].get(row, {}) for summary in summaries):
            continue
        grades = [summary["rows"][row][models] for summary in summaries]
        cells = [cell(grades, lambda g, name=name: value(g[name]), scale) for name, scale in MEASURES.items()]
        cells += [cell(grades, lambda g, name=name: g["retrieval"][name], 1) for name in RECALLS.values()]
        yield [label, *cells, margin([g["exact_match"] for g in grades], 100)]


def difference_lines(summaries: Sequence[Summary]) -> Iterator[list[str]]:
    for name in summaries[0]["differences"]:
        differences = [summary["differences"][name] for summary in summaries]
        yield [
            name,
            *(interval(differences, measure, scale) for measure, scale in DIFFERENCES.items()),
        ]


def filter_lines(summaries: Sequence[Summary]) -> Iterator[list[str]]:
    """Yield the kept and right shares, then the AUC of each score within strata."""
    figures: dict[str, Callable[[Summary], Any]] = {}
    for source in ("web", "synthetic"):
        for name in ("right_before", "kept", "right", "recall"):
            figures[f"{source} {name}"] = lambda f, source=source, name=name: f[source][name]
        for score in summaries[0]["filter"][source]["auc"]:
            figures[f"{source} AUC {score}"] = lambda f, source=source, score=score: f[source]["auc"][score]
    for stratum, grades in summaries[0]["filter"]["synthetic"]["strata"].items():
        for name in ("share_before", "share_kept", "right_before", "right"):
            figures[f"{stratum} {name}"] = lambda f, stratum=stratum, name=name: f["synthetic"]["strata"][stratum][name]
        for score in grades["auc"]:
            figures[f"{stratum} AUC {score}"] = lambda f, s=stratum, score=score: f["synthetic"]["strata"][s]["auc"][
                score
            ]
    for score in summaries[0]["filter"]["synthetic"]["auc_within_picture"]:
        figures[f"within a picture AUC {score}"] = lambda f, score=score: f["synthetic"]["auc_within_picture"][score]
    filters = [summary["filter"] for summary in summaries]
    for name, figure in figures.items():
        yield [
            name,
            cell(filters, lambda f, figure=figure: value(figure(f)), 100),
            margin([figure(f) for f in filters], 100),
        ]


def kind_lines(summaries: Sequence[Summary]) -> Iterator[list[str]]:
    for kind in summaries[0]["web_texts"]:
        kept = [summary["web_texts"][kind]["kept"] for summary in summaries]
        yield [kind, cell(kept, value, 100), margin(kept, 100)]


def round_lines(summaries: Sequence[Summary]) -> Iterator[list[str]]:
    for number in range(len(summaries[0]["rounds"])):
        rounds = [summary["rounds"][number] for summary in summaries]
        cells = [str(number), cell(rounds, lambda r: r["held_out"], 1)]
        if number:
            cells += [cell(rounds, lambda r: r["gauges"]["kept_share_captions"], 100)]
            cells += [cell(rounds, lambda r: value(r["filter"]["synthetic"]["right"]), 100)]
            cells += [
                cell(rounds, lambda r, name=name: r["gauges"][name], scale)
                for name, scale in (("distinct_captions", 100), ("distinct_bigrams", 1), ("rare_word_recall", 100))
            ]
        yield cells


def value(estimate: Any) -> float | None:
    return None if estimate is None else estimate["value"]


def cell(items: Sequence[Any], figure: Callable[[Any], float | None], scale: float) -> str:
    """Return the mean and the range of a figure; a dash where one is undefined."""
    numbers = [figure(item) for item in items]
    if any(number is None for number in numbers):
        return "–"
    scaled = [scale * number for number in numbers if number is not None]
    mean = sum(scaled) / len(scaled)
    return f"{mean:.1f}" if len(scaled) == 1 else f"{mean:.1f} ({min(scaled):.1f} to {max(scaled):.1f})"


def margin(estimates: Sequence[Any], scale: float) -> str:
    """Return half the mean width of intervals."""
    widths = [estimate["high"] - estimate["low"] for estimate in estimates if estimate is not None]
    return f"{scale * sum(widths) / len(widths) / 2:.1f}" if widths else "–"


def interval(differences: Sequence[Summary], measure: str, scale: float) -> str:
    """Return the mean difference, and per seed its interval."""
    estimates = [difference[measure] for difference in differences]
    intervals = ", ".join(f"{scale * e['low']:+.1f} to {scale * e['high']:+.1f}" for e in estimates)
    return f"{scale * sum(e['value'] for e in estimates) / len(estimates):+.1f} ({intervals})"


def table(title: str, columns: Sequence[str], lines: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    yield from (f"\n{title}\n", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}")
    yield from (f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge the summaries of demo runs with several seeds.")
    parser.add_argument("demos", type=Path, nargs="+", help="folders of demos, or their summary.json")
    paths = [path / "summary.json" if path.is_dir() else path for path in parser.parse_args().demos]
    print("\n".join(merge([json.loads(path.read_text(encoding="utf-8")) for path in paths])))


if __name__ == "__main__":
    main()
