"""Strata: kinds of texts, such as short and long ones, of which a threshold keeps the same share each.

A single threshold drops mostly the hard texts, such as long ones that name several things. A
stratum holds texts of one source in one range of the text length in words (`length`), of a score column, or of several
such numbers. Each range holds about the same number of texts. Each stratum keeps the share of its texts that the
threshold keeps of all texts of its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.texts import count_words, to_floats

LENGTH = "length"
# Ranges of a number.
RANGES = 5


@dataclass(frozen=True)
class Strata:
    """Strata of texts: the product of the ranges of the numbers `by` and the `sources`."""

    by: list[str]
    sources: list[str]
    # number -> lower edges of its ranges, the first excepted
    edges: dict[str, list[float]]
    # lowest deciding score of each stratum; empty until a threshold is chosen
    limits: list[float] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The strata as JSON values, from which `from_settings` restores them."""
        return {"by": self.by, "sources": self.sources, "edges": self.edges, "limits": self.limits}

    @staticmethod
    def from_settings(settings: Mapping[str, Any] | None) -> Strata | None:
        return None if settings is None else Strata(**settings)

    @property
    def names(self) -> list[str]:
        """Name of each stratum, such as "length 4 to 6, web"."""
        names = [""]
        for part in self.by:
            names = [f"{name}{other}, " for name in names for other in _range_names(part, self.edges[part])]
        return [f"{name}{source}" for name in names for source in self.sources]

    def locate(self, columns: Mapping[str, np.ndarray], source: np.ndarray) -> np.ndarray:
        """Return the index in `names` of each row, given its columns `by`, see `read_columns`, and index of its source.

        A missing number counts as the lowest.
        """
        stratum = np.zeros(len(source), int)
        for part in self.by:
            edges = np.array(self.edges[part])
            index = np.searchsorted(edges, np.nan_to_num(columns[part], nan=-np.inf), side="right")
            stratum = stratum * (len(edges) + 1) + index
        return (stratum * len(self.sources) + source).astype(np.int16)

    def equal_shares(self, values: np.ndarray, stratum: np.ndarray, threshold: float) -> list[float]:
        """Return a limit per stratum: each keeps the share that the threshold keeps of all `values` of its source.

        Equal values are kept together. At least one text of each stratum is kept, unless the share is 0. A stratum
        without texts has the limit `threshold`.
        """
        limits = []
        source = stratum % len(self.sources)
        for index in range(len(self.names)):
            share = (values[source == index % len(self.sources)] >= threshold).mean() if len(values) else 0
            of_stratum = values[stratum == index]
            of_stratum = np.sort(of_stratum[np.isfinite(of_stratum)])[::-1]
            count = max(1, round(share * len(of_stratum)))
            if not len(of_stratum):
                limits.append(threshold)
            elif share == 0:
                limits.append(math.nextafter(of_stratum[0], math.inf))
            else:
                lower = of_stratum[of_stratum < of_stratum[count - 1]]
                limits.append(shortest_decimal(lower[0] if len(lower) else -math.inf, of_stratum[count - 1]))
        return limits

    def row_limits(self, scores: pa.Table) -> np.ndarray:
        """Return the limit of each row of a table of scores."""
        source = pc.index_in(scores["source"], value_set=pa.array(self.sources)).to_numpy()
        return np.array(self.limits)[self.locate(read_columns(scores, self.by), source)]


def make_strata(by: Sequence[str], columns: Mapping[str, np.ndarray], sources: list[str]) -> Strata:
    """Return strata of the rows of `columns`, see `read_columns`."""
    edges = {}
    for part in by:
        known = columns[part][~np.isnan(columns[part])]
        cuts = np.quantile(known, np.arange(1, RANGES) / RANGES, method="higher") if len(known) else np.empty(0)
        edges[part] = [float(edge) for edge in np.unique(cuts) if edge > known.min()]
    return Strata(list(by), sources, edges)


def read_columns(scores: pa.Table, by: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns `by` of a table of scores as numbers, NaN for none."""
    columns = {}
    for part in by:
        if part == LENGTH:
            columns[part] = count_words(scores["text"]).astype(np.float32)
        else:
            columns[part] = to_floats(scores[part])
    return columns


def shortest_decimal(lower: float, upper: float) -> float:
    """Return the number with the fewest decimals in (lower, upper]."""
    for digits in range(17):
        rounded = math.floor(upper * 10**digits) / 10**digits
        if lower < rounded <= upper:
            return rounded
    return float(upper)


def _range_names(part: str, edges: Sequence[float]) -> list[str]:
    if not edges:
        return [f"any {part}"]
    texts = [f"{edge:.3g}" for edge in edges]
    if part == LENGTH:
        lows, highs = ["1", *texts], [f"{edge - 1:g}" for edge in edges]
        middle = [f"{low} to {high}" if low != high else low for low, high in zip(lows, highs, strict=False)]
        return [f"{part} {name}" for name in (*middle, f"{texts[-1]} or more")]
    inner = [f"{low} to {high}" for low, high in pairwise(texts)]
    return [f"{part} {name}" for name in (f"below {texts[0]}", *inner, f"{texts[-1]} or more")]
