"""Thresholds on the deciding score: chosen on labels or by the share of texts to keep.

The deciding score is ITM, or with `--threshold auto` the `mix` learned from labels. Precision and recall are too high
on the labels that a threshold was chosen on. `--threshold auto` therefore also chooses a threshold without each fold of
the labelled pictures, counts the texts of the fold that this one keeps, and adds up the folds. In simulations with 300
to 1,000 labels the result is slightly too low, because the thresholds of the folds differ, and its interval contains
the truth in 91 to 95% of them. A threshold given as a number is measured on all labels.

With strata, a threshold is a share: each stratum keeps the share that the threshold keeps of all texts of its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.decide import KEPT, BestTexts, decide
from capfilt.filter.intervals import clopper_pearson
from capfilt.filter.labelled import LabelledTexts
from capfilt.filter.labels import LabelMatcher, parse_target
from capfilt.filter.logistic import FOLDS
from capfilt.filter.strata import LENGTH, Strata, make_strata, read_columns, shortest_decimal


@dataclass(frozen=True)
class DecidedTexts:
    """Deciding scores of the N texts that the threshold decides about, and the L labels of some of them."""

    # name of the deciding score
    score: str
    # all texts, those included that other limits drop
    total: int
    # (N,)
    values: np.ndarray
    # (N,) index into `sources`
    source: np.ndarray
    sources: list[str]
    # (N,) index into the names of `strata`
    stratum: np.ndarray
    strata: Strata
    # each stratum keeps the same share; otherwise strata are only counted
    stratified: bool
    # (L,) index into `values`, label, deciding score of a model that has not seen the picture, fold of the picture
    row: np.ndarray
    match: np.ndarray
    held_out: np.ndarray
    fold: np.ndarray
    # labels whose text has no score
    unknown_labels: int = 0

    def limits(self, threshold: float) -> list[float]:
        """Return the lowest kept value of each stratum at a threshold."""
        if not self.stratified:
            return [threshold] * len(self.strata.names)
        return self.strata.equal_shares(self.values, self.stratum, threshold)

    def thresholds_of_labels(self) -> np.ndarray:
        """Return the highest threshold (L,) at which each labelled text is kept."""
        if not self.stratified:
            return self.held_out
        orders = [np.sort(self.values[self.source == source]) for source in range(len(self.sources))]
        thresholds = np.zeros(len(self.row))
        for index in range(len(self.strata.names)):
            order, of_stratum = orders[index % len(orders)], np.sort(self.values[self.stratum == index])
            labels = self.stratum[self.row] == index
            if len(of_stratum):
                share_above = 1 - np.searchsorted(of_stratum, self.held_out[labels], side="left") / len(of_stratum)
                position = np.floor((1 - share_above) * len(order) + 1e-9).astype(int)
                thresholds[labels] = order[np.clip(position, 0, len(order) - 1)]
        return thresholds


def collect_decided(
    tables: Iterable[tuple[str, pa.Table]],
    sources: list[str],
    limits: Mapping[str, float],
    best: BestTexts,
    score: str = "itm",
    by: list[str] | None = None,
    labels: pa.Table | None = None,
    labelled: LabelledTexts | None = None,
    held_out: np.ndarray | None = None,
) -> DecidedTexts:
    """Collect the scores that the threshold on `score` decides about, given the other limits.

    `tables` are pairs of a shard and its scores, of the `sources` alone. `labelled` are their rows with `labels`, in
    the same order. `held_out` is the deciding score of each by a model without its picture; default: the stored score.
    """
    by_columns = by or [LENGTH]
    total, values, source, rows, columns = 0, [], [], [], []
    label_numbers, label_count, offset = [], 0, 0
    matcher = None if labels is None else LabelMatcher(labels)
    for shard, table in tables:
        total += table.num_rows
        other_limits = {**limits, score: -np.inf}
        undecided = pc.equal(decide(table, other_limits, best, score), KEPT).to_numpy(zero_copy_only=False)
        number = np.full(table.num_rows, -1)
        if matcher is not None:
            labelled_rows = np.flatnonzero(matcher.find(shard, table) >= 0)
            number[labelled_rows] = label_count + np.arange(len(labelled_rows))
            label_count += len(labelled_rows)
        kept = table.filter(pa.array(undecided))
        # A missing score that a text cannot have does not drop it, see `decide.reaches`.
        values.append(np.nan_to_num(kept[score].cast(pa.float64()).to_numpy(), nan=np.inf))
        source.append(pc.index_in(kept["source"], value_set=pa.array(sources)).to_numpy().astype(np.int16))
        columns.append(read_columns(kept, by_columns))
        of_label = number[undecided]
        rows.append(offset + np.flatnonzero(of_label >= 0))
        label_numbers.append(of_label[of_label >= 0])
        offset += len(of_label)
    joined = {name: np.concatenate([part[name] for part in columns]) for name in by_columns}
    strata, all_source = make_strata(by_columns, joined, sources), np.concatenate(source)
    all_values, row, label = np.concatenate(values), np.concatenate(rows), np.concatenate(label_numbers)
    if labelled is None:
        match, fold, label_values = np.zeros(0, bool), np.zeros(0, int), np.zeros(0)
    else:
        # Precision and recall are measured on texts drawn at random alone.
        row, label = row[labelled.random[label]], label[labelled.random[label]]
        match, fold = labelled.match[label], labelled.fold[label]
        label_values = np.nan_to_num((labelled.column(score) if held_out is None else held_out)[label], nan=np.inf)
    return DecidedTexts(
        score,
        total,
        all_values,
        all_source,
        sources,
        strata.locate(joined, all_source),
        strata,
        bool(by),
        row,
        match,
        label_values,
        fold,
        0 if labelled is None else labelled.unknown,
    )


@dataclass(frozen=True)
class MeasuredShares:
    """Labelled texts that a threshold keeps: `right` match, of `kept`; `matching` match in all."""

    right: int
    kept: int
    matching: int

    def describe(self) -> list[str]:
        phrases = []
        for name, total, phrase in (
            ("precision", self.kept, f"{self.right} of the {self.kept} labelled texts kept match"),
            ("recall", self.matching, f"{self.right} of the {self.matching} matching texts are kept"),
        ):
            if total:
                low, high = clopper_pearson(self.right, total)
                share = self.right / total
                phrases.append(f"{phrase}: {name} {share:.3f}, 95% confidence interval {low:.3f} to {high:.3f}")
        return phrases


def choose_by_target(texts: DecidedTexts, target: str) -> tuple[float, str]:
    """Return a threshold that reaches a target such as "precision=0.9" on the labels, and its description.

    It is the lowest such threshold for precision, the highest for recall. Raises ValueError if there is none.
    """
    measure, share = parse_target(target)
    levels, match = texts.thresholds_of_labels(), texts.match
    number = len(match)
    if not number:
        raise ValueError(
            "No labelled text was drawn at random (column drawn), and a threshold is chosen on those alone; label some "
            "texts drawn at random."
        )
    if not match.any():
        raise ValueError(f"None of the {number} labelled texts that were drawn at random matches; label more texts.")
    threshold, reached, at = _find_threshold(levels, match, measure, share)
    if threshold is None:
        raise ValueError(
            f"No threshold of {texts.score} reaches {measure} {share:g} on the {number} labelled texts; the highest "
            f"{measure} is {reached:.3f}, at {at:.4g}. Lower --target, or label more texts."
        )
    _require_finite(texts, threshold, f"{measure} {share:g}")
    lower = texts.values[texts.values < threshold] if texts.stratified else levels[levels < threshold]
    threshold = shortest_decimal(float(lower.max()) if len(lower) else -1.0, threshold)
    right = kept = 0
    for fold in range(FOLDS):
        inside = texts.fold == fold
        if inside.any() and match[~inside].any():
            of_others, _, _ = _find_threshold(levels[~inside], match[~inside], measure, share)
            keep = inside & (levels >= (np.inf if of_others is None else of_others))
            right, kept = right + int((keep & match).sum()), kept + int(keep.sum())
    measured = MeasuredShares(right, kept, int(match.sum())).describe()
    description = (
        f"reaches {measure} {share:g} on the {number} labelled texts; on pictures that a threshold was not chosen on, "
        f"{'; '.join(measured) or 'nothing is kept'}; it keeps {_count(texts, texts.limits(threshold))}"
    )
    return threshold, description + describe_unknown(texts)


def _find_threshold(
    levels: np.ndarray, match: np.ndarray, measure: str, share: float
) -> tuple[float | None, float, float]:
    """Return the threshold among `levels` that reaches the share, or None; then the best share, and where it is."""
    order = np.argsort(levels, kind="stable")[::-1]
    last = np.flatnonzero(np.diff(levels[order], append=-np.inf))  # of texts with equal levels
    right, kept = np.cumsum(match[order])[last], last + 1
    reached = right / (kept if measure == "precision" else max(1, match.sum()))
    candidates = levels[order][last]
    sufficient = np.flatnonzero(reached >= share)
    best = int(np.argmax(reached))
    if not len(sufficient):
        return None, float(reached[best]), float(candidates[best])
    chosen = sufficient[-1] if measure == "precision" else sufficient[0]
    return float(candidates[chosen]), float(reached[best]), float(candidates[best])


def choose_by_fraction(texts: DecidedTexts, fraction: float) -> tuple[float, str]:
    """Return the threshold that keeps this share of all texts, and its description.

    Texts with equal scores are kept together. Raises ValueError for less than one text.
    """
    number = min(round(fraction * texts.total), len(texts.values))
    if number == 0:
        raise ValueError(f"A top fraction of {fraction:g} keeps none of the {texts.total} texts; raise it.")
    descending = np.sort(texts.values)[::-1]
    _require_finite(texts, descending[number - 1], f"a top fraction of {fraction:g}")
    lower = descending[number:][descending[number:] < descending[number - 1]]
    threshold = shortest_decimal(lower[0] if len(lower) else -1.0, descending[number - 1])
    return threshold, describe_threshold(texts, threshold)


def _require_finite(texts: DecidedTexts, threshold: float, goal: str) -> None:
    """Raise ValueError if only texts without the score, which no threshold drops, reach a goal."""
    if not np.isfinite(threshold):
        number = int(np.isinf(texts.values).sum())
        raise ValueError(
            f"{number} of {texts.total} texts have no {texts.score} and pass every threshold, so none reaches {goal}; "
            "name the sources that have one with --sources."
        )


def measure(texts: DecidedTexts, limits: list[float]) -> MeasuredShares:
    """Count the labelled texts that limits, one per stratum, keep."""
    kept = texts.held_out >= np.array(limits)[texts.stratum[texts.row]]
    return MeasuredShares(int((kept & texts.match).sum()), int(kept.sum()), int(texts.match.sum()))


def describe_threshold(texts: DecidedTexts, threshold: float) -> str:
    """Return a sentence on what a threshold that was not chosen on the labels keeps."""
    limits = texts.limits(threshold)
    phrases = [f"keeps {_count(texts, limits)}"]
    if len(texts.row):
        phrases += measure(texts, limits).describe()
    return "; ".join(phrases) + describe_unknown(texts)


def describe_unknown(texts: DecidedTexts) -> str:
    return f"; {texts.unknown_labels:,} labels have no scored text" if texts.unknown_labels else ""


def _count(texts: DecidedTexts, limits: list[float]) -> str:
    kept = int((texts.values >= np.array(limits)[texts.stratum]).sum())
    return f"{kept:,} of {texts.total:,} texts ({kept / max(1, texts.total):.1%})"
