"""A filtered folder in, what there is to say about it out: counts, histograms, texts, domains, download outcomes.

    Dataset.open -> batches, a shard's table at a time -> Verdicts, Scores, Texts, Domains, each `add`ed every batch
                                                       -> facts: plain numbers, for a page or a program

What stays in memory is 17 bytes a text (to find repeated ones), the domains, and samples of fixed size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.filter.decide import KEPT, NO_TEXT
from capfilt.filter.filtered_set import Batch, Dataset
from capfilt.filter.texts import clean, hashes, ngrams, words
from capfilt.shards.format import WEB

SAMPLE = 20_000  # texts of a source that lengths, vocabulary and distinct-n are counted on
FEWEST = 500  # texts to count vocabulary and distinct-n on even if another column of the table has fewer
LONGEST = 40  # words; longer texts share the last bar
DOMAINS = 20  # told by name
PLACES = [0, 0.001, 0.002, 0.005, *(n / 100 for n in range(1, 100)), 0.995, 0.998, 0.999]  # ITM crowds at its ends
COSINES = [n / 100 for n in range(-100, 101)]  # the same bins for every data set, so that they compare
_HOST = r"(?i)^[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(?:www\.)?(?P<host>[^/:?#]+)"


def thresholds(used: Iterable[float]) -> list[float]:
    """Where ITM scores are told apart: a grid, and the thresholds that data sets were filtered with."""
    return sorted({*PLACES, *(float(value) for value in used)})


# ---------------------------------------------------------------------------------------------------- reading


# ---------------------------------------------------------------------------------------------------- counting


@dataclass
class Verdicts:
    """Texts = kept + dropped by reason, by source."""

    data: Dataset
    pictures: int = 0
    pictures_kept: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, batch: Batch) -> None:
        keys = batch.table["key"]
        self.pictures += pc.count_distinct(keys).as_py()
        self.pictures_kept += pc.count_distinct(keys.filter(pa.array(batch.kept))).as_py()
        groups = batch.table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist()
        self.counts.update({(row["source"], row["reason"]): row["count_all"] for row in groups})

    def facts(self) -> dict[str, Any]:
        by_source = []
        for source in self.data.sources:
            dropped = Counter({reason: count for (name, reason), count in self.counts.items() if name == source})
            kept = dropped.pop(KEPT, 0)
            texts = kept + dropped.total()
            by_source.append({"name": source, "texts": texts, "kept": kept, "dropped": dict(dropped.most_common())})
        return {"pictures": self.pictures, "pictures_kept": self.pictures_kept, "sources": by_source}


@dataclass
class Scores:
    """A histogram of each score for each source; bin n counts values from `bins[n]` to below `bins[n + 1]`."""

    data: Dataset
    places: list[float]  # of ITM, see `thresholds`

    def __post_init__(self) -> None:
        number = len(self.data.sources)
        self.bins = {name: np.array(self.places if name == "itm" else COSINES) for name in self.data.columns}
        self.counts = {name: np.zeros((number, len(bins)), int) for name, bins in self.bins.items()}
        self.hangs_on_itm = np.zeros((number, len(self.places)), int)

    def add(self, batch: Batch) -> None:
        for name, values in batch.values.items():
            self._count(self.counts[name], self.bins[name], batch.source, values, ~np.isnan(values))
        self._count(self.hangs_on_itm, self.bins["itm"], batch.source, batch.values["itm"], batch.hangs_on_itm)

    @staticmethod
    def _count(into: np.ndarray, bins: np.ndarray, source: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        place = np.clip(np.searchsorted(bins, values[rows], side="right") - 1, 0, len(bins) - 1)
        flat = source[rows].astype(int) * len(bins) + place
        into += np.bincount(flat, minlength=into.size).reshape(into.shape)

    def facts(self) -> dict[str, Any]:
        histograms = {
            name: {"bins": self.bins[name].tolist(), "counts": counts.tolist()} for name, counts in self.counts.items()
        }
        return {"scores": histograms, "hangs_on_itm": self.hangs_on_itm.tolist()}


class Texts:
    """Of each source, all of its texts and the kept ones: length, vocabulary, distinct-n, repeated texts.

    Vocabulary and distinct-n (distinct n-grams / n-grams, Li et al. 2016) change with the number of texts, so all
    are counted on the same number where there are as many.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.random = np.random.Generator(np.random.Philox(0))  # the same report from the same tables
        self.samples = {(source, kept): Least(SAMPLE) for source in data.sources for kept in (False, True)}
        self.seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # hash, 2 x source + kept, shard and row

    def add(self, batch: Batch) -> None:
        table = batch.table
        some = pc.not_equal(table["reason"], NO_TEXT).to_numpy() & pc.is_valid(table["text"]).to_numpy()
        priority = self.random.random(len(table))
        for (source, only_kept), sample in self.samples.items():
            rows = some & (batch.source == self.data.sources.index(source)) & (batch.kept | (not only_kept))
            sample.offer(table.select(["text"]), np.where(rows, priority, np.nan))
        rows = np.flatnonzero(some)
        group = (2 * batch.source + batch.kept).astype(np.uint8)[rows]
        self.seen.append((hashes(clean(table["text"]))[rows], group, (np.int64(len(self.seen)) << 32) + rows))

    def facts(self) -> dict[str, Any]:
        sizes = [len(sample.priority) for sample in self.samples.values()]
        common = max(FEWEST, min((size for size in sizes if size), default=0))
        hashed, group = (np.concatenate([part[place] for part in self.seen]) for place in (0, 1))
        found = []
        for number, ((source, kept), sample) in enumerate(self.samples.items()):
            mine = hashed[group == number if kept else group // 2 == number // 2]
            about = {"source": source, "kept": kept, "texts": len(mine), "repeated": _repeated(mine)}
            found.append(about | _diversity(sample.rows["text"] if sample.rows else pa.array([], pa.string()), common))
        return {"texts": found}

    def most_repeated(self, number: int) -> list[tuple[AnyPath, int, int]]:
        """(table, row, times) of the first of each of the texts that occur most often, at least twice."""
        hashed, place = (np.concatenate([part[column] for part in self.seen]) for column in (0, 2))
        _, first, times = np.unique(hashed, return_index=True, return_counts=True)
        most = [n for n in np.argsort(-times, kind="stable")[:number] if times[n] > 1]
        return [
            (self.data.tables[place[first[n]] >> 32], int(place[first[n]] & 0xFFFFFFFF), int(times[n])) for n in most
        ]


def _repeated(hashed: np.ndarray) -> float | None:
    """Share of texts that another text equals."""
    _, times = np.unique(hashed, return_counts=True)
    return float(times[times > 1].sum() / len(hashed)) if len(hashed) else None


def _diversity(sample: pa.ChunkedArray | pa.Array, common: int) -> dict[str, Any]:
    of_sample = words(sample)
    lengths = pc.list_value_length(of_sample).to_numpy(zero_copy_only=False)
    grams = [ngrams(of_sample.slice(0, common), n) for n in (1, 2, 3)]
    distinct = [len(np.unique(found)) for found in grams]
    return {
        "mean_words": float(lengths.mean()) if len(lengths) else None,
        "lengths": np.bincount(np.minimum(lengths, LONGEST), minlength=LONGEST + 1).tolist(),
        "counted_on": min(common, len(lengths)),
        "vocabulary": distinct[0],
        "distinct": [
            number / len(found) if len(found) else None for number, found in zip(distinct, grams, strict=True)
        ],
    }


@dataclass
class Domains:
    """Web and synthetic texts, and how many are kept, by the host that the picture came from."""

    data: Dataset
    found: list[pa.Table] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        host = pc.utf8_lower(pc.struct_field(pc.extract_regex(batch.table["url"], _HOST), "host"))
        web, kept = np.array([source == WEB for source in self.data.sources])[batch.source], batch.kept
        counts = {"web": web, "web_kept": web & kept, "synthetic": ~web, "synthetic_kept": ~web & kept}
        table = pa.table({"host": host, **{name: rows.astype(np.int64) for name, rows in counts.items()}})
        self.found.append(self._summed(table.filter(pc.is_valid(host))))

    def facts(self) -> dict[str, Any]:
        hosts = self._summed(pa.concat_tables(self.found))
        hosts = hosts.append_column("texts", pc.add(hosts["web"], hosts["synthetic"]))
        most = hosts.sort_by([("texts", "descending"), ("host", "ascending")]).slice(0, DOMAINS)
        return {"domains": {"number": len(hosts), "most": most.drop_columns("texts").to_pylist()}}

    @staticmethod
    def _summed(hosts: pa.Table) -> pa.Table:
        counts = hosts.column_names[1:]
        summed = hosts.group_by("host").aggregate([(name, "sum") for name in counts])
        return summed.select(["host", *(f"{name}_sum" for name in counts)]).rename_columns(hosts.column_names)


class Least:
    """The `size` rows of least priority among all that were offered, in the order of their priority."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.priority = np.empty(0)
        self.rows: pa.Table | None = None

    def offer(self, rows: pa.Table, priority: np.ndarray) -> None:
        """Rows with a priority each; NaN is never taken."""
        bound = self.priority[-1] if len(self.priority) >= self.size else np.inf
        taken = np.flatnonzero(priority < bound)
        if len(taken) == 0:
            return
        priority, table = np.concatenate([self.priority, priority[taken]]), rows.take(pa.array(taken))
        table = pa.concat_tables([self.rows, table]) if self.rows is not None else table
        order = np.argsort(priority, kind="stable")[: self.size]
        self.priority, self.rows = priority[order], table.take(pa.array(order)).combine_chunks()
