"""ITM thresholds: chosen on labels or by the share of texts to keep, and reported with what they keep.

Precision and recall are too high on the labels that a threshold was chosen on. `--threshold auto` therefore chooses it
on half of the labelled pictures (the selection half) and measures on the other (the held-out half). A threshold given
as a number is measured on all labels.

Intervals are Clopper-Pearson intervals (Biometrika 1934) at 95%. They assume independent labels, about one per picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.decide import KEPT, BestTexts, decide, format_threshold
from capfilt.filter.labels import LabelMatcher, held_out_mask, parse_target

TABLE_THRESHOLDS = [0.0, 0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99, 0.999]
# 1 - confidence level of the intervals.
ALPHA = 0.05


@dataclass(frozen=True)
class ItmScores:
    """ITM scores and labels of the texts that the ITM threshold decides about; `total` counts all texts."""

    total: int
    itm: np.ndarray
    # index into `sources`
    source: np.ndarray
    # 1 match, 0 no match, -1 no label
    label: np.ndarray
    sources: list[str]
    # mask of the held-out half; None: no split
    held_out: np.ndarray | None = None
    # labels whose text has no score
    unknown_labels: int = 0

    def kept(self, threshold: float) -> np.ndarray:
        """Return a mask of the texts that a threshold keeps."""
        return self.itm >= threshold

    def selection_half(self) -> ItmScores:
        """Return a copy without the labels of the held-out half."""
        return self if self.held_out is None else replace(self, label=np.where(self.held_out, -1, self.label))

    def held_out_half(self) -> ItmScores:
        """Return a copy without the labels of the selection half."""
        return self if self.held_out is None else replace(self, label=np.where(self.held_out, self.label, -1))


def collect_itm_scores(
    tables: Iterable[tuple[str, pa.Table]],
    sources: list[str],
    limits: dict[str, float],
    best: BestTexts,
    labels: pa.Table | None = None,
) -> ItmScores:
    """Collect the ITM scores that the threshold decides about, given the other limits.

    `tables` are pairs of a shard and its scores. Labels are joined on shard, key, source and index. Raises ValueError
    if no label has a row, or one has rows of several shards.
    """
    total, parts = 0, []
    matcher = None if labels is None else LabelMatcher(labels)
    label_held_out = None if labels is None else held_out_mask(labels)
    for shard, table in tables:
        table = table.filter(pc.is_in(table["source"], pa.array(sources))).combine_chunks()
        total += table.num_rows
        label, held_out = np.full(table.num_rows, -1, np.int8), np.zeros(table.num_rows, bool)
        if matcher is not None and label_held_out is not None:
            label_row = matcher.find(shard, table)
            has_label = label_row >= 0
            label[has_label] = matcher.labels["match"].to_numpy()[label_row[has_label]]
            held_out[has_label] = label_held_out[label_row[has_label]]
        undecided = pc.equal(decide(table, limits | {"itm": 0.0}, best), KEPT).to_numpy(zero_copy_only=False)
        source = pc.index_in(table["source"], value_set=pa.array(sources)).to_numpy()
        itm = table["itm"].cast(pa.float64()).to_numpy()
        parts.append((itm[undecided], source[undecided], label[undecided], held_out[undecided]))
    if matcher is not None and not matcher.found:
        raise ValueError(
            f"None of the {len(matcher.labels)} labelled texts has a score; "
            "key, source and index of a label must be those of the score tables."
        )
    unknown = 0 if matcher is None else len(matcher.labels) - matcher.found
    itm, source, label, held_out = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ItmScores(total, itm, source, label, sources, held_out, unknown)


def choose_by_target(scores: ItmScores, target: str) -> tuple[float, str]:
    """Return a threshold that reaches a target such as "precision=0.9" on the selection half, and its description.

    It is the lowest such threshold for precision, the highest for recall. Raises ValueError if there is none.
    """
    measure, share = parse_target(target)
    selection, held_out = scores.selection_half(), scores.held_out_half()
    has_label = selection.label >= 0
    itm, match = selection.itm[has_label], selection.label[has_label] == 1
    if not match.any():
        raise ValueError(f"None of the {len(itm)} labelled texts of the selection half matches; label more texts.")
    thresholds = np.unique(itm)
    matches_kept = np.array([match[itm >= threshold].sum() for threshold in thresholds])
    if measure == "precision":
        reached = matches_kept / np.array([(itm >= threshold).sum() for threshold in thresholds])
    else:
        reached = matches_kept / match.sum()
    sufficient = np.flatnonzero(reached >= share)
    if not len(sufficient):
        highest = int(np.argmax(reached))
        raise ValueError(
            f"No threshold reaches {measure} {share:g} on the {len(itm)} labelled texts of the selection half; the "
            f"highest {measure} is {reached[highest]:.3f}, at {thresholds[highest]:.4g}."
        )
    chosen = int(sufficient[0] if measure == "precision" else sufficient[-1])
    threshold = _shortest_decimal(thresholds[chosen - 1] if chosen else -1.0, thresholds[chosen])
    description = (
        f"reaches {measure} {share:g} on the {len(itm)} labelled texts of the selection half; measured on the "
        f"{int((held_out.label >= 0).sum())} of the held-out half, it {describe_threshold(held_out, threshold)}"
    )
    return threshold, description


def choose_by_fraction(scores: ItmScores, fraction: float) -> tuple[float, str]:
    """Return the threshold that keeps this share of all texts, and its description.

    Texts with equal ITM are kept together. Raises ValueError for less than one text.
    """
    number = min(round(fraction * scores.total), len(scores.itm))
    if number == 0:
        raise ValueError(f"A top fraction of {fraction:g} keeps none of the {scores.total} texts.")
    descending = np.sort(scores.itm)[::-1]
    lower = descending[number:][descending[number:] < descending[number - 1]]
    threshold = _shortest_decimal(lower[0] if len(lower) else -1.0, descending[number - 1])
    return threshold, describe_threshold(scores, threshold)


def _shortest_decimal(lower: float, upper: float) -> float:
    """Return the number with the fewest decimals in (lower, upper]."""
    for digits in range(17):
        rounded = math.floor(upper * 10**digits) / 10**digits
        if lower < rounded <= upper:
            return rounded
    return float(upper)


# ---------------------------------------------------------------------------------------------------- reporting


def evaluate_threshold(scores: ItmScores, threshold: float) -> dict[str, Any]:
    """Return what a threshold keeps, with precision and recall if there are labels.

    Both are {"right": kept matches, "of": denominator, "share": their ratio, "interval": (low, high)}.
    """
    kept = scores.kept(threshold)
    row: dict[str, Any] = {
        "threshold": threshold,
        "kept": int(kept.sum()),
        "share": kept.sum() / max(1, scores.total),
        "by_source": {name: int((kept & (scores.source == n)).sum()) for n, name in enumerate(scores.sources)},
    }
    match = scores.label == 1
    for name, denominator in (("precision", kept & (scores.label >= 0)), ("recall", match)):
        if denominator.any():
            right, total = int((kept & match).sum()), int(denominator.sum())
            row[name] = {
                "right": right,
                "of": total,
                "share": right / total,
                "interval": clopper_pearson(right, total),
            }
    return row


def threshold_table(scores: ItmScores, current: float) -> list[dict[str, Any]]:
    """Evaluate a range of thresholds, the current one included."""
    return [evaluate_threshold(scores, threshold) for threshold in sorted({*TABLE_THRESHOLDS, current})]


def format_threshold_table(rows: list[dict[str, Any]], current: float) -> list[str]:
    """Format the rows of `threshold_table` as lines of text; a star marks the current threshold."""
    sources = list(rows[0]["by_source"])
    measures = [name for name in ("precision", "recall") if any(name in row for row in rows)]
    lines = [["ITM >=", "kept", "share", *sources, *measures]]
    for row in rows:
        mark = "*" if row["threshold"] == current else ""
        cells = [mark + format_threshold(row["threshold"]), f"{row['kept']:,}", f"{row['share']:.1%}"]
        cells += [f"{row['by_source'][source]:,}" for source in sources]
        for name in measures:
            if name in row:
                low, high = row[name]["interval"]
                cells.append(f"{row[name]['share']:.3f} ({low:.3f} to {high:.3f})")
            else:
                cells.append("-")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in lines]


def describe_threshold(scores: ItmScores, threshold: float) -> str:
    row = evaluate_threshold(scores, threshold)
    phrases = [f"keeps {row['kept']:,} of {scores.total:,} texts ({row['share']:.1%})"]
    templates = {
        "precision": "{right} of the {of} labelled texts kept match",
        "recall": "{right} of the {of} matching texts are kept",
    }
    for name, template in templates.items():
        if name in row:
            low, high = row[name]["interval"]
            phrases.append(
                f"{template.format(**row[name])}: {name} {row[name]['share']:.3f}, 95% confidence interval "
                f"{low:.3f} to {high:.3f}"
            )
    if scores.unknown_labels:
        phrases.append(f"{scores.unknown_labels:,} labels have no scored text")
    return "; ".join(phrases)


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% Clopper-Pearson interval of a binomial proportion.

    At the lower bound, at least `successes` have probability ALPHA / 2; at the upper one, at most `successes`.
    """
    numbers = np.arange(trials + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(numbers[1:]))])
    log_binomials = log_factorials[trials] - log_factorials - log_factorials[::-1]

    def tail(proportion: float, tail_numbers: np.ndarray) -> float:
        log_odds = tail_numbers * math.log(proportion) + (trials - tail_numbers) * math.log1p(-proportion)
        return float(np.exp(log_binomials[tail_numbers] + log_odds).sum())

    low, high = 0.0, 1.0
    if successes:
        low = _bisect(lambda proportion: tail(proportion, numbers[successes:]) - ALPHA / 2)
    if successes < trials:
        high = _bisect(lambda proportion: ALPHA / 2 - tail(proportion, numbers[: successes + 1]))
    return low, high


def _bisect(increasing: Callable[[float], float]) -> float:
    """Return the root of an increasing function between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) > 0 else (middle, high)
    return high
