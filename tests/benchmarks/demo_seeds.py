"""Merges the summaries of demo runs with several seeds into Markdown tables: the mean, and the range over the seeds.

    for seed in 21 22 23; do capfilt demo --seed $seed --rounds 3 --rows all --out demo$seed; done
    python tests/benchmarks/demo_seeds.py demo21 demo22 demo23

A cell is "mean (lowest to highest)" over the seeds. The last column is half the width of the 95% interval over pictures
of the first figure of the line, averaged over the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from capfilt.demo.tables import ROWS

Summary = dict[str, Any]
Names = tuple[str, ...]  # of names, from a summary to a figure
MEASURES = {"exact_match": 100, "object_f1": 100, "cider": 1, "mean_recall": 1}
DIFFERENCES = {"exact_match": 100, "cider": 1, "mean_recall": 1}
RECALLS = {"text R@1": "i2t_r@1", "image R@1": "t2i_r@1"}
ROUNDS = {
    "captions kept": (("gauges", "kept_share_captions"), 100),
    "right": (("filter", "synthetic", "right"), 100),
    "distinct": (("gauges", "distinct_captions"), 100),
    "bigrams": (("gauges", "distinct_bigrams"), 1),
    "rare words": (("gauges", "rare_word_recall"), 100),
}


def merge(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield the lines of all tables."""
    for models in ("finetuned", "zero_shot"):
        columns = ["trained on", *MEASURES, *RECALLS, "± pictures"]
        yield from table(f"Rows, {models}", columns, row_lines(summaries, models))
    yield from table("Differences per picture, finetuned", ["rows", *DIFFERENCES], difference_lines(summaries))
    yield from table("Filter", ["figure", "%", "± pictures"], filter_lines(summaries))
    kinds = [(kind, "kept") for kind in summaries[0]["web_texts"]]
    yield from table("Web texts", ["kind", "%", "± pictures"], figure_lines(summaries, ("web_texts",), kinds))
    if all("oracle_gain_reached" in summary for summary in summaries):
        lines = [[name, cell(summaries, ("oracle_gain_reached", name), 100)] for name in DIFFERENCES]
        yield from table("Share of the oracle's gain that is reached", ["measure", "%"], lines)
    if all("rounds" in summary for summary in summaries):
        yield from table("Rounds", ["round", "validation CIDEr", *ROUNDS], round_lines(summaries))
    seconds = cell(summaries, ("seconds",), 1)
    yield f"Seeds {', '.join(str(summary['config']['seed']) for summary in summaries)}; seconds {seconds}"


def row_lines(summaries: Sequence[Summary], models: str) -> Iterator[list[str]]:
    for row, label in ROWS.items():
        path = ("rows", row, models)
        if all(models in summary["rows"].get(row, {}) for summary in summaries):
            cells = [cell(summaries, (*path, name), scale) for name, scale in MEASURES.items()]
            cells += [cell(summaries, (*path, "retrieval", name), 1) for name in RECALLS.values()]
            yield [label, *cells, margin(summaries, (*path, "exact_match"), 100)]


def difference_lines(summaries: Sequence[Summary]) -> Iterator[list[str]]:
    for name in summaries[0]["differences"]:
        yield [
            name,
            *(intervals(summaries, ("differences", name, measure), DIFFERENCES[measure]) for measure in DIFFERENCES),
        ]


def filter_lines(summaries: Sequence[Summary]) -> Iterator[list[str]]:
    """Yield the kept and right shares, then the AUC of each score within strata and pictures."""
    grades = summaries[0]["filter"]
    shares, strata = (
        ("right_before", "kept", "right", "recall"),
        ("share_before", "share_kept", "right_before", "right"),
    )
    paths: list[Names] = []
    for source in grades:
        paths += [(source, name) for name in shares] + [(source, "auc", score) for score in grades[source]["auc"]]
    synthetic = grades["synthetic"]
    for stratum, of_stratum in synthetic["strata"].items():
        start = ("synthetic", "strata", stratum)
        paths += [(*start, name) for name in strata] + [(*start, "auc", score) for score in of_stratum["auc"]]
    paths += [("synthetic", "auc_within_picture", score) for score in synthetic["auc_within_picture"]]
    yield from figure_lines(summaries, ("filter",), paths)


def figure_lines(summaries: Sequence[Summary], start: Names, paths: Iterable[Names]) -> Iterator[list[str]]:
    """Yield a line per estimate, named by its path below `start`."""
    for path in paths:
        full = (*start, *path)
        yield [" ".join(path).replace("_", " "), cell(summaries, full, 100), margin(summaries, full, 100)]


def round_lines(summaries: Sequence[Summary]) -> Iterator[list[str]]:
    for number in range(len(summaries[0]["rounds"])):
        rounds = [summary["rounds"][number] for summary in summaries]
        cells = [cell(rounds, path, scale) for path, scale in ROUNDS.values()] if number else []
        yield [str(number), cell(rounds, ("held_out",), 1), *cells]


def find(item: Any, path: Names) -> Any:
    """Return the figure at a path of names."""
    for name in path:
        item = item[name]
    return item


def cell(items: Sequence[Any], path: Names, scale: float) -> str:
    """Return the mean and the range of a number or estimate; a dash where one is undefined."""
    found = [find(item, path) for item in items]
    if None in found:
        return "–"
    scaled = [scale * (figure["value"] if isinstance(figure, dict) else figure) for figure in found]
    mean = sum(scaled) / len(scaled)
    return f"{mean:.1f}" if len(scaled) == 1 else f"{mean:.1f} ({min(scaled):.1f} to {max(scaled):.1f})"


def margin(items: Sequence[Any], path: Names, scale: float) -> str:
    """Return half the mean width of the intervals of an estimate."""
    estimates = [estimate for estimate in (find(item, path) for item in items) if estimate is not None]
    widths = [estimate["high"] - estimate["low"] for estimate in estimates]
    return f"{scale * sum(widths) / len(widths) / 2:.1f}" if widths else "–"


def intervals(items: Sequence[Any], path: Names, scale: float) -> str:
    """Return the mean of an estimate, and its interval of each item."""
    estimates = [find(item, path) for item in items]
    each = ", ".join(f"{scale * e['low']:+.1f} to {scale * e['high']:+.1f}" for e in estimates)
    return f"{scale * sum(e['value'] for e in estimates) / len(estimates):+.1f} ({each})"


def table(title: str, columns: Sequence[str], lines: Iterable[list[str]]) -> Iterator[str]:
    yield from (f"\n{title}\n", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}")
    yield from (f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge the summaries of demo runs with several seeds.")
    parser.add_argument("demos", type=Path, nargs="+", help="folders of demos, or their summary.json")
    paths = [path / "summary.json" if path.is_dir() else path for path in parser.parse_args().demos]
    print("\n".join(merge([json.loads(path.read_text(encoding="utf-8")) for path in paths])))


if __name__ == "__main__":
    main()
