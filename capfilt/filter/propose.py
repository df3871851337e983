"""Proposes which texts of a filtered set to label next.

    random         a quarter, drawn at random; precision is measured on these alone
    uncertain      with a deciding score close to its threshold
    disagreement   with a high rank among the texts of its source by one score, and a low one by another

The last two are distributed evenly over the sources and over ranges of the text length, so that hard texts are labelled
too.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.decide import DUPLICATE
from capfilt.filter.filtered_set import FilteredSet, FilteredShard
from capfilt.filter.labels import RANDOM
from capfilt.filter.strata import LENGTH, make_strata
from capfilt.filter.texts import count_words
from capfilt.shards.tables import read_table

UNCERTAIN, DISAGREEMENT = "uncertain", "disagreement"
# One text in four is drawn at random.
RANDOM_PART = 4
COLUMNS = ["key", "source", "index", "text"]


def propose_labels(data: FilteredSet, number: int, seed: int) -> pa.Table:
    """Return at most `number` texts to label, in the order to ask: shard, key, source, index, text and drawn.

    The same set and seed give the same texts. Raises ValueError if no text has a score.
    """
    shards, values, source, words, usable = [], [], [], [], []
    for shard in data.read_shards():
        shards.append((shard.shard, len(shard.table)))
        values.append(np.stack([shard.values[name] for name in data.columns], axis=1).astype(np.float32))
        source.append(shard.source.astype(np.int16))
        words.append(count_words(shard.table["text"]).astype(np.float32))
        usable.append(_usable(shard))
    table, of_source, length = np.concatenate(values), np.concatenate(source), np.concatenate(words)
    rows = np.flatnonzero(np.concatenate(usable))
    if not len(rows):
        raise ValueError(f"{data.folder} has no text with a score, so there is nothing to label.")
    table, of_source, length = table[rows], of_source[rows], length[rows]
    strata = make_strata([LENGTH], {LENGTH: length}, data.sources)
    stratum = strata.locate({LENGTH: length}, of_source)
    ranks = _ranks(table, of_source)
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big"))
    random = rng.random(len(rows))
    score = data.columns.index(data.score)
    chosen: dict[int, str] = {}
    at_random = -(-number // RANDOM_PART)
    wanted = {
        RANDOM: (random, at_random),
        UNCERTAIN: (_distance(table[:, score], ranks[:, score], of_source, data.threshold), (number - at_random) // 2),
        DISAGREEMENT: (-_disagreement(ranks), number),
    }
    for drawn, (priority, count) in wanted.items():
        group = np.zeros(len(rows), np.int16) if drawn == RANDOM else stratum
        count = min(count, number - len(chosen))
        free = np.flatnonzero(~np.isin(np.arange(len(rows)), list(chosen)) & ~np.isnan(priority))
        order = _take_turns(free, priority + 1e-9 * random, group)[:count]
        chosen |= dict.fromkeys(order.tolist(), drawn)
    # In random order, so that neither the kind nor the scores of a text influence its label.
    mixed = sorted(chosen, key=lambda row: random[row] if chosen[row] != RANDOM else rng.random())
    return _read_rows(data, shards, rows[mixed], [chosen[row] for row in mixed])


def _usable(shard: FilteredShard) -> np.ndarray:
    """Return a mask of the texts with an ITM score that repeat no other text."""
    repeats = pc.equal(shard.table["reason"], DUPLICATE).to_numpy(zero_copy_only=False)
    return ~np.isnan(shard.values["itm"]) & ~repeats


def _ranks(table: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return for each score its rank among the texts of its source, from 0 to 1; NaN for no score."""
    ranks = np.full(table.shape, np.nan)
    for column in range(table.shape[1]):
        for index in np.unique(source):
            rows = np.flatnonzero((source == index) & ~np.isnan(table[:, column]))
            ordered = np.sort(table[rows, column])
            ranks[rows, column] = np.searchsorted(ordered, table[rows, column]) / max(1, len(rows))
    return ranks


def _distance(score: np.ndarray, rank: np.ndarray, source: np.ndarray, threshold: float) -> np.ndarray:
    """Return how many texts of its source, as a share, lie between each text and the threshold."""
    distance = np.full(len(score), np.nan)
    for index in np.unique(source):
        rows = (source == index) & ~np.isnan(score)
        distance[rows] = np.abs(rank[rows] - (score[rows] < threshold).mean()) if rows.any() else np.nan
    return distance


def _disagreement(ranks: np.ndarray) -> np.ndarray:
    """Return the highest rank minus the lowest of each text; NaN with fewer than two scores."""
    several = (~np.isnan(ranks)).sum(axis=1) > 1
    disagreement = np.full(len(ranks), np.nan)
    disagreement[several] = np.nanmax(ranks[several], axis=1) - np.nanmin(ranks[several], axis=1)
    return disagreement


def _take_turns(rows: np.ndarray, priority: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return `rows` by priority, lowest first, in turns: the first of each group, then the second of each."""
    order = rows[np.lexsort((priority[rows], group[rows]))]
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    turn = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return order[np.lexsort((priority[order], turn))]


def _read_rows(data: FilteredSet, shards: list[tuple[str, int]], rows: np.ndarray, drawn: list[str]) -> pa.Table:
    """Read the texts at `rows`, counted over all shards."""
    parts, positions, start = [], [], 0
    for path, (shard, size) in zip(data.tables, shards, strict=True):
        inside = np.flatnonzero((rows >= start) & (rows < start + size))
        if len(inside):
            part = read_table(path, COLUMNS).take(pa.array(rows[inside] - start))
            parts.append(part.add_column(0, "shard", pa.array([shard] * len(part), pa.string())))
            positions.append(inside)
        start += size
    table = pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(positions))))
    return table.append_column("drawn", pa.array(drawn, pa.string()))
