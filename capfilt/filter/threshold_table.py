"""Tables of what thresholds keep: of all texts, of each source and of each stratum, with precision and recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from capfilt.filter.decide import format_threshold
from capfilt.filter.intervals import clopper_pearson
from capfilt.filter.threshold import DecidedTexts

TABLE_THRESHOLDS = [0.0, 0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99, 0.999]
# Rows of the table for a score that is no probability.
QUANTILES = 12

Row = dict[str, Any]


def threshold_table(texts: DecidedTexts, current: float) -> list[Row]:
    """Evaluate a range of thresholds, the current one included.

    A row has `threshold`, `kept`, `share` of all texts, `by_source`, and with labels `precision` and `recall`, each
    {"right": kept matches, "of": denominator, "share": their ratio, "interval": (low, high)}.
    """
    return [evaluate_threshold(texts, threshold) for threshold in sorted({*_thresholds(texts), current})]


def evaluate_threshold(texts: DecidedTexts, threshold: float) -> Row:
    """Return the row of a threshold."""
    limits = np.array(texts.limits(threshold))
    kept = texts.values >= limits[texts.stratum]
    row: Row = {
        "threshold": threshold,
        "kept": int(kept.sum()),
        "share": kept.sum() / max(1, texts.total),
        "by_source": {name: int((kept & (texts.source == n)).sum()) for n, name in enumerate(texts.sources)},
    }
    return row | _measure(texts, limits, np.ones(len(texts.row), bool))


def strata_table(texts: DecidedTexts, threshold: float) -> list[Row]:
    """Return a row per stratum: `stratum`, `limit`, `texts`, `kept`, `share`, and with labels precision and recall."""
    limits = np.array(texts.limits(threshold))
    kept = texts.values >= limits[texts.stratum]
    rows = []
    for index, name in enumerate(texts.strata.names):
        inside = texts.stratum == index
        number = int(inside.sum())
        if number:
            of_stratum = int((kept & inside).sum())
            row: Row = {"stratum": name, "limit": float(limits[index]), "texts": number, "kept": of_stratum}
            row["share"] = of_stratum / number
            rows.append(row | _measure(texts, limits, texts.stratum[texts.row] == index))
    return rows


def _thresholds(texts: DecidedTexts) -> Sequence[float]:
    finite = texts.values[np.isfinite(texts.values)]
    if not len(finite) or (finite.min() >= 0 and finite.max() <= 1):
        return TABLE_THRESHOLDS
    quantiles = np.quantile(finite, np.arange(QUANTILES) / QUANTILES, method="lower")
    return [float(f"{value:.3g}") for value in quantiles]


def _measure(texts: DecidedTexts, limits: np.ndarray, labels: np.ndarray) -> Row:
    """Return precision and recall on the `labels` (a mask), as far as they are defined."""
    kept = labels & (texts.held_out >= limits[texts.stratum[texts.row]])
    right = int((kept & texts.match).sum())
    measured = {}
    for name, mask in (("precision", kept), ("recall", labels & texts.match)):
        total = int(mask.sum())
        if total:
            interval = clopper_pearson(right, total)
            measured[name] = {"right": right, "of": total, "share": right / total, "interval": interval}
    return measured


def format_threshold_table(rows: Sequence[Row], current: float, score: str = "itm") -> list[str]:
    """Format the rows of `threshold_table` as lines of text; a star marks the current threshold."""
    sources = list(rows[0]["by_source"])
    lines = [[f"{'ITM' if score == 'itm' else score} >=", "kept", "share", *sources]]
    for row in rows:
        mark = "*" if row["threshold"] == current else ""
        cells = [mark + format_threshold(row["threshold"]), f"{row['kept']:,}", f"{row['share']:.1%}"]
        lines.append(cells + [f"{row['by_source'][source]:,}" for source in sources])
    return _align(_add_measures(lines, rows))


def format_strata_table(rows: Sequence[Row]) -> list[str]:
    """Format the rows of `strata_table` as lines of text."""
    lines = [["of these", "limit", "texts", "kept", "share"]]
    for row in rows:
        cells = [row["stratum"], format_threshold(row["limit"]), f"{row['texts']:,}", f"{row['kept']:,}"]
        lines.append([*cells, f"{row['share']:.1%}"])
    return _align(_add_measures(lines, rows))


def _add_measures(lines: list[list[str]], rows: Sequence[Row]) -> list[list[str]]:
    """Add a column of precision and one of recall, if any row has them."""
    for name in ("precision", "recall"):
        if any(name in row for row in rows):
            lines[0].append(name)
            for line, row in zip(lines[1:], rows, strict=True):
                line.append(_format_measure(row[name]) if name in row else "-")
    return lines


def _format_measure(measure: Row) -> str:
    low, high = measure["interval"]
    return f"{measure['share']:.3f} ({low:.3f} to {high:.3f})"


def _align(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in lines]
