"""Reads a filtered set batch by batch, for reports and exports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath, list_names, to_path
from capfilt.filter.decide import KEPT, Best, hangs_on_itm
from capfilt.shards.format import SCORES, VERDICT, images_of, read_manifest
from capfilt.shards.tables import read_table


@dataclass(frozen=True)
class Batch:
    """The rows of one shard, as the counters want them."""

    shard: str
    table: pa.Table
    source: np.ndarray  # place in Dataset.sources
    kept: np.ndarray
    values: dict[str, np.ndarray]  # scores as 64-bit numbers, NaN where there is none
    hangs_on_itm: np.ndarray  # kept or dropped by the ITM threshold alone


@dataclass(frozen=True)
class Dataset:
    """An output of `capfilt filter`, as its manifest describes it."""

    folder: AnyPath
    tables: list[AnyPath]
    sources: list[str]
    columns: list[str]  # of scores
    limits: dict[str, float]
    best: Best
    manifest: dict[str, Any]

    @staticmethod
    def open(path: str | AnyPath) -> Dataset:
        """`filtered/<name>`, or a shard set that was filtered once; else an error in one sentence."""
        folder = _filtered_folder(to_path(path))
        manifest = read_manifest(folder) or {}
        tables = _tables(folder)
        if not tables:
            raise ValueError(f"{folder} has no finished table yet; run the same `capfilt filter` again to finish it.")
        config, there = manifest["config"], read_table(tables[0]).column_names
        columns = [name for name in there if name not in SCORES.names and name not in VERDICT.names]
        best = Best(config.get("best", 0), config.get("best_of", "itm"), config.get("best_across", False))
        return Dataset(folder, tables, config["sources"], columns, config["limits"], best, manifest)

    @property
    def images(self) -> AnyPath:
        """The shard set with the pictures; it may have been moved away since."""
        return images_of(self.folder)

    @property
    def threshold(self) -> float:
        """Least ITM probability that the data set was filtered with."""
        return self.limits["itm"]

    def batches(self) -> Iterator[Batch]:
        """Every row, a shard at a time."""
        for path in self.tables:
            table = read_table(
                path, ["key", "source", "index", "text", *self.columns, "reason", "url"]
            ).combine_chunks()
            yield Batch(
                path.stem,
                table,
                pc.index_in(table["source"], value_set=pa.array(self.sources)).to_numpy(),
                pc.equal(table["reason"], KEPT).to_numpy(),
                {name: table[name].cast(pa.float64()).to_numpy() for name in self.columns},
                hangs_on_itm(table, self.limits, self.best),
            )


def _tables(folder: AnyPath) -> list[AnyPath]:
    return [folder / name for name in list_names(folder) if name.endswith(".parquet") and not name.startswith(".")]


def _filtered_folder(folder: AnyPath) -> AnyPath:
    manifest = read_manifest(folder)
    if manifest is not None and manifest["stage"] == "filter":
        return folder
    if not (folder.is_dir() if isinstance(folder, Path) else list_names(folder)):
        raise FileNotFoundError(f"No folder at {folder}.")
    inside = [folder / "filtered" / name for name in list_names(folder / "filtered") if not name.startswith(".")]
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise ValueError(f"{folder} was filtered more than once; give one of {', '.join(map(str, inside))}.")
    raise ValueError(f"{folder} is no output of `capfilt filter`; give DATA/filtered/NAME.")


def downloads(images: AnyPath) -> dict[str, int]:
    """Outcome -> rows, over the shard set's own tables; empty where there are none."""
    found: Counter[str] = Counter()
    for path in _tables(images):
        try:
            table = read_table(path, [], optional=("status",))
        except ValueError:  # in a set of others it may be cut short, and the pictures are there all the same
            continue
        if table.column_names:
            counts = pc.value_counts(table["status"]).to_pylist()
            found.update({row["values"] or "not told": row["counts"] for row in counts})
    return dict(found.most_common())
