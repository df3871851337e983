"""Scores and, where there are some, labels in; an ITM threshold out, and in plain words what it keeps.

    judge    tables of scores, the other limits -> the ITM of every text that the threshold decides about, its label
    choose   labels and a target, or a share of the texts to keep -> the threshold
    explain  what each of many thresholds would keep

A labelled file is small and made by hand: CSV, JSON lines or Parquet with `key`, `match` (1 or 0, true or false), and
`source` (web where empty) and `index` (0 where empty), as the tables of scores have them; texts drawn at random.

A threshold looks better on the labels that it was chosen on than it is. So `auto` chooses on those of every second
labelled picture and says what precision and recall are on the others, a split sample; a threshold that is given is
judged on all. The intervals are exact ones (Clopper and Pearson 1934): at least 95 of 100 hold the true share, if few
pictures have more than one labelled text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from capfilt.filter.decide import KEPT, Best, as_typed, decide
from capfilt.filter.labels import _every_second, parse_target

SHOWN = [0.0, 0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99, 0.999]
DOUBT = 0.05  # of an interval: it misses the true share no more often


@dataclass(frozen=True)
class Judged:
    """Texts that the ITM threshold alone decides about."""

    texts: int  # in all, those that are dropped at any threshold too
    itm: np.ndarray
    source: np.ndarray  # place in `sources`
    label: np.ndarray  # 1 matches, 0 does not, -1 nobody has said
    sources: list[str]
    held: np.ndarray | None = None  # mask of the labels that `auto` judges by; it chooses by the others
    strangers: int = 0  # labels of texts that are not there

    def kept(self, threshold: float) -> np.ndarray:
        """Mask of the texts that this threshold keeps."""
        return self.itm >= threshold

    def to_choose(self) -> Judged:
        """With the labels of one half of the labelled pictures."""
        return self if self.held is None else replace(self, label=np.where(self.held, -1, self.label))

    def to_judge(self) -> Judged:
        """With the labels of the other half."""
        return self if self.held is None else replace(self, label=np.where(self.held, self.label, -1))


def judge(
    tables: Iterable[pa.Table], sources: list[str], limits: dict[str, float], best: Best, labels: pa.Table | None = None
) -> Judged:
    """Texts of tables of scores; a label speaks of the row with its key, source and index."""
    texts, parts, found = 0, [], 0
    said = None if labels is None else _names(labels)
    half = None if labels is None else _every_second(labels["key"])
    for table in tables:
        table = table.filter(pc.is_in(table["source"], pa.array(sources))).combine_chunks()
        texts += table.num_rows
        label, held = np.full(table.num_rows, -1, np.int8), np.zeros(table.num_rows, bool)
        if said is not None:
            row = pc.index_in(_names(table), value_set=said)
            there = pc.is_valid(row).to_numpy(zero_copy_only=False)
            label[there] = labels["match"].take(row.drop_null()).to_numpy()
            held[there] = half[row.drop_null().to_numpy()]
            found += int(there.sum())
        hangs = pc.equal(decide(table, limits | {"itm": 0.0}, best), KEPT).to_numpy(zero_copy_only=False)
        source = pc.index_in(table["source"], value_set=pa.array(sources)).to_numpy()
        parts.append((table["itm"].cast(pa.float64()).to_numpy()[hangs], source[hangs], label[hangs], held[hangs]))
    if said is not None and not found:
        raise ValueError(
            f"None of the {len(said)} labelled texts is among the scores; "
            "key, source and index must be those of the tables."
        )
    itm, source, label, held = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Judged(texts, itm, source, label, sources, held, strangers=max(0, len(said) - found) if said else 0)


# ---------------------------------------------------------------------------------------------------- choosing


def choose_by_target(judged: Judged, target: str) -> tuple[float, str]:
    """The threshold that reaches the target on the labels of one half of the pictures, judged on those of the other.

    For precision the lowest of such thresholds, for recall the highest.
    """
    measure, share = parse_target(target)
    chooser = judged.to_choose()
    labelled = chooser.label >= 0
    itm, match = chooser.itm[labelled], chooser.label[labelled] == 1
    if not match.any():
        raise ValueError(
            f"None of the {len(itm)} labelled texts that it is chosen on (of every second picture) matches; label more."
        )
    places = np.unique(itm)
    right = np.array([match[itm >= place].sum() for place in places])
    whole = np.array([(itm >= place).sum() for place in places]) if measure == "precision" else match.sum()
    reached = right / whole
    enough = np.flatnonzero(reached >= share)
    if not len(enough):
        best = int(np.argmax(reached))
        raise ValueError(
            f"No threshold reaches {measure} {share:g} on the {len(itm)} labelled texts that it is chosen on (of every "
            f"second picture): the most is {reached[best]:.3f}, at {places[best]:.4g}."
        )
    chosen = int(enough[0] if measure == "precision" else enough[-1])
    threshold = _shortest(places[chosen - 1] if chosen else -1.0, places[chosen])
    others = judged.to_judge()
    told = (
        f"reaches {measure} {share:g} on {len(itm)} labelled texts; judged on {int((others.label >= 0).sum())} others"
    )
    return threshold, f"{told}: it {in_words(others, threshold)}"


def choose_by_share(judged: Judged, fraction: float) -> tuple[float, str]:
    """The threshold that keeps this share of all texts, those of the highest ITM; equal ones stay together."""
    number = min(round(fraction * judged.texts), len(judged.itm))
    if number == 0:
        raise ValueError(f"A top fraction of {fraction:g} keeps no text of {judged.texts}.")
    falling = np.sort(judged.itm)[::-1]
    following = falling[number:][falling[number:] < falling[number - 1]]
    threshold = _shortest(following[0] if len(following) else -1.0, falling[number - 1])
    return threshold, in_words(judged, threshold)


def _shortest(below: float, at: float) -> float:
    """The number of fewest decimals above `below` and not above `at`: it parts the texts just as `at` does."""
    for digits in range(17):
        rounded = math.floor(at * 10**digits) / 10**digits
        if below < rounded <= at:
            return rounded
    return float(at)


# ---------------------------------------------------------------------------------------------------- telling


def measures(judged: Judged, threshold: float) -> dict[str, Any]:
    """What a threshold keeps, and precision and recall on the labelled texts with their 95% intervals."""
    kept = judged.kept(threshold)
    found: dict[str, Any] = {
        "threshold": threshold,
        "kept": int(kept.sum()),
        "share": kept.sum() / max(1, judged.texts),
    }
    found["by_source"] = {name: int((kept & (judged.source == n)).sum()) for n, name in enumerate(judged.sources)}
    match = judged.label == 1
    for name, among in (("precision", kept & (judged.label >= 0)), ("recall", match)):
        if among.any():
            right, whole = int((kept & match).sum()), int(among.sum())
            found[name] = {"right": right, "of": whole, "share": right / whole, "interval": exact(right, whole)}
    return found


def explain(judged: Judged, used: float) -> list[dict[str, Any]]:
    """`measures` of a row of thresholds, the one in use among them."""
    return [measures(judged, threshold) for threshold in sorted({*SHOWN, used})]


def as_lines(rows: list[dict[str, Any]], used: float) -> list[str]:
    """What `explain` found as a table of letters; the threshold in use is marked."""
    sources = list(rows[0]["by_source"])
    head = [
        "ITM >=",
        "kept",
        "share",
        *sources,
        *(name for name in ("precision", "recall") if any(name in row for row in rows)),
    ]
    table = [head]
    for row in rows:
        mark = "*" if row["threshold"] == used else ""
        cells = [mark + as_typed(row["threshold"]), f"{row['kept']:,}", f"{row['share']:.1%}"]
        cells += [f"{row['by_source'][source]:,}" for source in sources]
        for name in head[len(cells) :]:
            low, high = row.get(name, {}).get("interval", (None, None))
            cells.append("-" if low is None else f"{row[name]['share']:.3f} ({low:.3f} to {high:.3f})")
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]


def in_words(judged: Judged, threshold: float) -> str:
    """A sentence or two about a threshold, for people."""
    told = measures(judged, threshold)
    words = [f"keeps {told['kept']:,} of {judged.texts:,} texts ({told['share']:.1%})"]
    phrases = {
        "precision": "of the {of} labelled texts that it keeps {right} match",
        "recall": "of the {of} that match it keeps {right}",
    }
    for name, phrase in phrases.items():
        if name in told:
            low, high = told[name]["interval"]
            words.append(
                f"{phrase.format(**told[name])}: {name} {told[name]['share']:.3f}, "
                f"with 95% confidence between {low:.3f} and {high:.3f}"
            )
    if judged.strangers:
        words.append(f"{judged.strangers:,} labels are of texts that are not there")
    return "; ".join(words)


def exact(right: int, whole: int) -> tuple[float, float]:
    """95% interval of a share: the shares under which as few, and as many, as `right` are not rarer than 2.5% each."""
    number = np.arange(whole + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(number[1:]))])
    ways = logs[whole] - logs - logs[::-1]  # log of `whole` choose `number`

    def tail(share: float, numbers: np.ndarray) -> float:
        odds = numbers * math.log(share) + (whole - numbers) * math.log1p(-share)
        return float(np.exp(ways[numbers] + odds).sum())

    low = _root(lambda share: tail(share, number[right:]) - DOUBT / 2) if right else 0.0
    high = _root(lambda share: DOUBT / 2 - tail(share, number[: right + 1])) if right < whole else 1.0
    return low, high


def _root(rising: Callable[[float], float]) -> float:
    """Where between 0 and 1 a function becomes positive."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return high


def _names(table: pa.Table) -> pa.Array:
    """One text a row that says which text it is."""
    index = table["index"].cast(pa.string())
    joined = pc.binary_join_element_wise(table["key"], table["source"], index, "\t")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
