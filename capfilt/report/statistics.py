"""Statistics of a filtered set: verdicts, score histograms, properties of the texts, hosts.

In memory are 17 bytes per text (to find repeated texts), the hosts, and samples of fixed size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.filter.decide import KEPT, NO_TEXT
from capfilt.filter.filtered_set import FilteredSet, FilteredShard
from capfilt.filter.texts import clean_texts, hash_ngrams, hash_strings, split_words
from capfilt.shards.format import WEB

# Texts per source on which lengths, vocabulary and distinct-n are counted.
SAMPLE_SIZE = 20_000
# Vocabulary and distinct-n are counted on this many texts, even if another column has fewer.
MIN_COMMON_TEXTS = 500
# The last bar of the length histogram holds all longer texts.
MAX_WORDS_SHOWN = 40
HOSTS_SHOWN = 20
# Denser at both ends, where ITM scores crowd.
ITM_GRID = [0, 0.001, 0.002, 0.005, *(n / 100 for n in range(1, 100)), 0.995, 0.998, 0.999]
# Scores with the bins of ITM.
PROBABILITIES = ("itm", "mix", "itm_min", "itm_mean", "vqa")
# The same bins for all sets, so that histograms can be compared.
COSINE_BINS = [n / 100 for n in range(-100, 101)]
_HOST = r"(?i)^[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(?:www\.)?(?P<host>[^/:?#]+)"


def itm_bins(thresholds: Iterable[float]) -> list[float]:
    """Return the lower edges of the ITM bins: a grid and the thresholds in use."""
    return sorted({*ITM_GRID, *(float(threshold) for threshold in thresholds)})


class Statistic(Protocol):
    """A part of the report: `add` takes shard by shard, `result` returns plain numbers."""

    def add(self, shard: FilteredShard) -> None: ...

    def result(self) -> dict[str, Any]: ...


@dataclass
class VerdictCounts:
    """Kept texts, dropped texts by reason, and pictures."""

    data: FilteredSet
    pictures: int = 0
    pictures_kept: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, shard: FilteredShard) -> None:
        keys = shard.table["key"]
        self.pictures += pc.count_distinct(keys).as_py()
        self.pictures_kept += pc.count_distinct(keys.filter(pa.array(shard.kept))).as_py()
        groups = shard.table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist()
        self.counts.update({(row["source"], row["reason"]): row["count_all"] for row in groups})

    def result(self) -> dict[str, Any]:
        sources = []
        for source in self.data.sources:
            dropped = Counter({reason: count for (name, reason), count in self.counts.items() if name == source})
            kept = dropped.pop(KEPT, 0)
            texts = kept + dropped.total()
            sources.append({"name": source, "texts": texts, "kept": kept, "dropped": dict(dropped.most_common())})
        return {"pictures": self.pictures, "pictures_kept": self.pictures_kept, "sources": sources}


@dataclass
class ScoreHistograms:
    """A histogram per score and source; bin n counts values from `bins[n]` to below `bins[n + 1]`.

    `decided_by_score` counts the texts that the deciding score alone decides about, in bins between `thresholds`: its
    sum from a bin on is the number of texts kept at a threshold of the bin's lower edge.
    """

    data: FilteredSet
    # lower edges of the ITM bins, see `itm_bins`
    itm_edges: list[float]

    def __post_init__(self) -> None:
        number = len(self.data.sources)
        edges = {name: self.itm_edges if name in PROBABILITIES else COSINE_BINS for name in self.data.columns}
        self.bins = {name: np.array(bins) for name, bins in edges.items()}
        self.counts = {name: np.zeros((number, len(bins)), int) for name, bins in self.bins.items()}
        self.decided_by_score = np.zeros((number, len(self.itm_edges)), int)

    def add(self, shard: FilteredShard) -> None:
        for name, values in shard.values.items():
            _add_counts(self.counts[name], self.bins[name], shard.source, values, ~np.isnan(values))
        values, edges = shard.values[self.data.score], np.array(self.itm_edges)
        _add_counts(self.decided_by_score, edges, shard.source, values, shard.decided_by_score)

    def result(self) -> dict[str, Any]:
        histograms = {
            name: {"bins": self.bins[name].tolist(), "counts": counts.tolist()} for name, counts in self.counts.items()
        }
        decided = {"thresholds": self.itm_edges, "decided_by_score": self.decided_by_score.tolist()}
        return {"scores": histograms, **decided}


def _add_counts(counts: np.ndarray, bins: np.ndarray, source: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
    """Add the values at `rows` (a mask) to `counts` (sources, bins)."""
    value_bin = np.clip(np.searchsorted(bins, values[rows], side="right") - 1, 0, len(bins) - 1)
    cell = source[rows].astype(int) * len(bins) + value_bin
    counts += np.bincount(cell, minlength=counts.size).reshape(counts.shape)


class TextStatistics:
    """Length, vocabulary, distinct-n and repeated texts per source, of all texts and of the kept ones.

    Distinct-n (Li et al. 2016) is different n-grams / n-grams. It and the vocabulary depend on the number of texts, so
    all columns are counted on the same number, if they have as many.
    """

    def __init__(self, data: FilteredSet) -> None:
        self.data = data
        self.random = np.random.Generator(np.random.Philox(0))
        self.samples = {(source, kept): LowestRows(SAMPLE_SIZE) for source in data.sources for kept in (False, True)}
        # per shard: hash of each text, its column (2 * source + kept), its location (shard << 32 | row)
        self.hashes: list[np.ndarray] = []
        self.columns: list[np.ndarray] = []
        self.locations: list[np.ndarray] = []

    def add(self, shard: FilteredShard) -> None:
        table = shard.table
        has_text = pc.not_equal(table["reason"], NO_TEXT).to_numpy() & pc.is_valid(table["text"]).to_numpy()
        priority = self.random.random(len(table))
        for (source, only_kept), sample in self.samples.items():
            mask = has_text & (shard.source == self.data.sources.index(source)) & (shard.kept | (not only_kept))
            sample.offer(table.select(["text"]), np.where(mask, priority, np.nan))
        rows = np.flatnonzero(has_text)
        self.locations.append((np.int64(len(self.locations)) << 32) + rows)
        self.hashes.append(hash_strings(clean_texts(table["text"]))[rows])
        self.columns.append((2 * shard.source + shard.kept).astype(np.uint8)[rows])

    def result(self) -> dict[str, Any]:
        sizes = [len(sample.priority) for sample in self.samples.values()]
        common = max(MIN_COMMON_TEXTS, min((size for size in sizes if size), default=0))
        hashes, columns = np.concatenate(self.hashes), np.concatenate(self.columns)
        texts = []
        for number, ((source, kept), sample) in enumerate(self.samples.items()):
            column_hashes = hashes[columns == number if kept else columns // 2 == number // 2]
            row = {"source": source, "kept": kept, "texts": len(column_hashes), "repeated": _repeated(column_hashes)}
            sampled = sample.rows["text"] if sample.rows else pa.array([], pa.string())
            texts.append(row | _diversity(sampled, common))
        return {"texts": texts}

    def most_repeated(self, number: int) -> list[tuple[AnyPath, int, int]]:
        """Return (table, row, occurrences) of the first occurrence of each text that is most frequent."""
        locations = np.concatenate(self.locations)
        _, first, occurrences = np.unique(np.concatenate(self.hashes), return_index=True, return_counts=True)
        repeated = []
        for n in np.argsort(-occurrences, kind="stable")[:number]:
            if occurrences[n] > 1:
                location = int(locations[first[n]])
                repeated.append((self.data.tables[location >> 32], location & 0xFFFFFFFF, int(occurrences[n])))
        return repeated


def _repeated(hashes: np.ndarray) -> float | None:
    _, occurrences = np.unique(hashes, return_counts=True)
    return float(occurrences[occurrences > 1].sum() / len(hashes)) if len(hashes) else None


def _diversity(texts: pa.ChunkedArray | pa.Array, common: int) -> dict[str, Any]:
    """Measure lengths on all texts, vocabulary and distinct-n on the first `common`."""
    words = split_words(texts)
    lengths = pc.list_value_length(words).to_numpy(zero_copy_only=False)
    ngrams = [hash_ngrams(words.slice(0, common), n) for n in (1, 2, 3)]
    different = [len(np.unique(hashes)) for hashes in ngrams]
    return {
        "mean_words": float(lengths.mean()) if len(lengths) else None,
        "lengths": np.bincount(np.minimum(lengths, MAX_WORDS_SHOWN), minlength=MAX_WORDS_SHOWN + 1).tolist(),
        "counted_on": min(common, len(lengths)),
        "vocabulary": different[0],
        "distinct": [
            number / len(hashes) if len(hashes) else None for number, hashes in zip(different, ngrams, strict=True)
        ],
    }


@dataclass
class HostCounts:
    """Web and synthetic texts, in all and kept, per host of the picture's URL."""

    data: FilteredSet
    tables: list[pa.Table] = field(default_factory=list)

    def add(self, shard: FilteredShard) -> None:
        host = pc.utf8_lower(pc.struct_field(pc.extract_regex(shard.table["url"], _HOST), "host"))
        web = np.array([source == WEB for source in self.data.sources])[shard.source]
        masks = {
            "web": web,
            "web_kept": web & shard.kept,
            "synthetic": ~web,
            "synthetic_kept": ~web & shard.kept,
        }
        table = pa.table({"host": host, **{name: mask.astype(np.int64) for name, mask in masks.items()}})
        self.tables.append(self._sum_by_host(table.filter(pc.is_valid(host))))

    def result(self) -> dict[str, Any]:
        hosts = self._sum_by_host(pa.concat_tables(self.tables))
        hosts = hosts.append_column("texts", pc.add(hosts["web"], hosts["synthetic"]))
        largest = hosts.sort_by([("texts", "descending"), ("host", "ascending")]).slice(0, HOSTS_SHOWN)
        return {"hosts": {"count": len(hosts), "largest": largest.drop_columns("texts").to_pylist()}}

    @staticmethod
    def _sum_by_host(hosts: pa.Table) -> pa.Table:
        counts = hosts.column_names[1:]
        sums = hosts.group_by("host").aggregate([(name, "sum") for name in counts])
        return sums.select(["host", *(f"{name}_sum" for name in counts)]).rename_columns(hosts.column_names)


class LowestRows:
    """The `size` rows with the lowest priority of all rows offered, in ascending order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.priority = np.empty(0)
        self.rows: pa.Table | None = None

    def offer(self, rows: pa.Table, priority: np.ndarray) -> None:
        """Offer rows with one priority each; a row with NaN is never taken."""
        bound = self.priority[-1] if len(self.priority) >= self.size else np.inf
        accepted = np.flatnonzero(priority < bound)
        if len(accepted) == 0:
            return
        merged_priority = np.concatenate([self.priority, priority[accepted]])
        table = rows.take(pa.array(accepted))
        merged = table if self.rows is None else pa.concat_tables([self.rows, table])
        order = np.argsort(merged_priority, kind="stable")[: self.size]
        self.priority, self.rows = merged_priority[order], merged.take(pa.array(order)).combine_chunks()
