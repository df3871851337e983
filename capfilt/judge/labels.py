"""Labels of a filtered set as a test: the texts come from its tables, the pictures from the tars of its shard set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from blipcore.io.storage import to_path
from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.labels import LabelMatcher, read_labels
from capfilt.judge.formats import Case, Picture, PublicTest


@dataclass(frozen=True)
class LabelledTest:
    """The labelled texts as a test, with the scores that the filtered set holds already."""

    test: PublicTest
    data: FilteredSet
    # score column -> one number per case
    stored: dict[str, list[np.ndarray]]


def read_labelled_test(path: Path, filtered: str | None) -> LabelledTest:
    """Read the labels at `path` and their texts in `filtered`; ValueError or FileNotFoundError without either."""
    if filtered is None:
        raise ValueError(f"{path} labels texts of a filtered set; name it: --image-root DATA/filtered/NAME.")
    labels, data = read_labels(to_path(str(path))), FilteredSet.open(filtered)
    matcher = LabelMatcher(labels)
    match = np.array(labels["match"].to_pylist(), float)
    cases: list[Case] = []
    stored: dict[str, list[np.ndarray]] = {name: [] for name in data.columns}
    for shard in data.read_shards():
        rows = matcher.find(shard.shard, shard.table)
        chosen = np.flatnonzero(rows >= 0)
        picked = shard.table.select(["key", "text", "reason"]).take(pa.array(chosen)).to_pylist()
        for place, row, label in zip(chosen.tolist(), picked, rows[chosen].tolist(), strict=True):
            if row["text"] is None or row["reason"].startswith("undecodable"):
                raise ValueError(f"{path} labels a text of {row['key']} that cannot be judged ({row['reason']}).")
            picture = Picture(row["key"], shard=shard.shard)
            cases.append(Case(picture, [row["text"]], (match[label],), group=shard.shard))
            for name, values in stored.items():
                values.append(shard.values[name][place : place + 1])
    if matcher.found_count < len(labels):
        raise ValueError(
            f"{len(labels) - matcher.found_count} of {len(labels)} labels in {path} fit no text of {data.folder}; give "
            "the set that was labelled."
        )
    return LabelledTest(PublicTest("labels", "labels", cases, Path(path)), data, stored)
