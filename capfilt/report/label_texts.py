"""Draws the texts of a filtered set that are to be labelled by hand.

The labeller sees neither score nor verdict nor source, so that they do not influence the labels. Equal numbers of texts
are drawn per source, as far as they reach, in an order that does not reveal the source.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.decide import DUPLICATE
from capfilt.filter.filtered_set import FilteredSet, FilteredShard
from capfilt.filter.labels import RANDOM
from capfilt.filter.propose import propose_labels
from capfilt.filter.texts import hash_strings
from capfilt.report.statistics import LowestRows


@dataclass(frozen=True)
class DrawnText:
    """A text to label."""

    shard: str
    key: str
    source: str
    index: int
    text: str
    # "random", or why it was proposed; see `capfilt.filter.labels`
    drawn: str = RANDOM

    @property
    def identifier(self) -> str:
        """A hash of the text and its place: a label fits no other text, even under the same name and seed."""
        parts = "\t".join([self.shard, self.key, self.source, str(self.index), self.text])
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()


def draw_texts(data: FilteredSet, number: int, seed: int) -> list[DrawnText]:
    """Return at most `number` texts with a score, in random order.

    The same set and seed give the same texts, and a larger number adds texts at the end. Raises ValueError if the set
    has no text with a score.
    """
    lowest = [LowestRows(number) for _ in data.sources]
    for shard in data.read_shards():
        priority = _random_numbers(shard, seed)
        usable = ~np.isnan(shard.values["itm"]) & ~pc.equal(shard.table["reason"], DUPLICATE).to_numpy()
        shard_names = pa.repeat(pa.scalar(shard.shard), len(shard.table))
        rows = shard.table.select(["key", "source", "index", "text"]).append_column("shard", shard_names)
        for source, of_source in enumerate(lowest):
            of_source.offer(rows, np.where(usable & (shard.source == source), priority, np.nan))
    drawn = []
    for of_source in lowest:
        texts = [DrawnText(**row) for row in of_source.rows.to_pylist()] if of_source.rows else []
        drawn += [(rank, _shuffled(text, seed), text) for rank, text in enumerate(texts)]
    if not drawn:
        raise ValueError(f"{data.folder} has no text with a score, so there is nothing to label.")
    return [text for _, _, text in sorted(drawn, key=lambda entry: entry[:2])][:number]


def propose_texts(data: FilteredSet, number: int, seed: int) -> list[DrawnText]:
    """Return the texts of `propose_labels`, of which a part is drawn at random. Raises ValueError as `draw_texts`."""
    return [DrawnText(**row) for row in propose_labels(data, number, seed).to_pylist()]


def _random_numbers(shard: FilteredShard, seed: int) -> np.ndarray:
    """Return a number from 0 to 1 per text that depends on the seed, its shard, key, source and index alone."""
    table = shard.table
    place = pc.binary_join_element_wise(shard.shard, table["key"], table["source"], table["index"].cast("string"), "\t")
    # splitmix64's last step: `hash_strings` is linear, so it needs mixing
    mixed = hash_strings(place) ^ np.uint64(int.from_bytes(_hash(str(seed)), "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))).astype(np.float64) / 2.0**64


def _shuffled(text: DrawnText, seed: int) -> bytes:
    return _hash(f"{seed} {text.identifier}")


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
