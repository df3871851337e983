"""Filtered sets: the output folders of `capfilt filter`, read by reports and exports."""

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
from capfilt.filter.decide import KEPT, BestTexts, decided_by_score
from capfilt.filter.strata import Strata
from capfilt.shards.further_columns import filtered_columns, score_columns
from capfilt.shards.manifest import MANIFEST, image_folder, read_manifest
from capfilt.shards.tables import read_schema, read_table


@dataclass(frozen=True)
class FilteredShard:
    """The rows of one shard, as a table and as arrays."""

    shard: str
    table: pa.Table
    # index into FilteredSet.sources
    source: np.ndarray
    # bool
    kept: np.ndarray
    # score column -> float64, NaN for no score
    values: dict[str, np.ndarray]
    # bool, see `decide.decided_by_score`
    decided_by_score: np.ndarray


@dataclass(frozen=True)
class FilteredSet:
    """An output folder of `capfilt filter`, described by its manifest."""

    folder: AnyPath
    tables: list[AnyPath]
    sources: list[str]
    # names of the score columns
    columns: list[str]
    # columns of the input
    further: pa.Schema
    # score column -> limit
    limits: dict[str, float]
    best: BestTexts
    # the deciding score, to which the threshold applies
    score: str
    # a limit per stratum instead of the threshold
    strata: Strata | None
    manifest: dict[str, Any]

    @staticmethod
    def open(path: str | AnyPath) -> FilteredSet:
        """Open `filtered/<name>`, or a shard set with one filtered set; raises FileNotFoundError or ValueError."""
        folder = _find_filtered_folder(to_path(path))
        manifest = read_manifest(folder) or {}
        tables = _list_tables(folder)
        if not tables:
            raise ValueError(f"{folder} has no table yet; repeat the `capfilt filter` command to finish it.")
        try:
            config = manifest["config"]
            limits, sources = config["limits"], config["sources"]
        except (KeyError, TypeError):
            raise ValueError(
                f"{folder / MANIFEST} lacks the settings of the filter; write the set again with `capfilt filter` and "
                "another --name."
            ) from None
        schema = read_schema(tables[0])
        best = BestTexts(config.get("best", 0), config.get("best_of", "itm"), config.get("best_across", False))
        columns, further = score_columns(schema.names), filtered_columns(schema)
        score, strata = config.get("score", "itm"), Strata.from_settings(config.get("strata"))
        return FilteredSet(folder, tables, sources, columns, further, limits, best, score, strata, manifest)

    @property
    def images(self) -> AnyPath:
        """The shard set with the pictures, which may have been moved."""
        return image_folder(self.folder)

    @property
    def threshold(self) -> float:
        return self.limits[self.score]

    def read_shards(self) -> Iterator[FilteredShard]:
        """Read all rows, one shard at a time."""
        columns = ["key", "source", "index", "text", *self.columns, "reason", "url"]
        for path in self.tables:
            table = read_table(path, columns).combine_chunks()
            yield FilteredShard(
                shard=path.stem,
                table=table,
                source=pc.index_in(table["source"], value_set=pa.array(self.sources)).to_numpy(),
                kept=pc.equal(table["reason"], KEPT).to_numpy(),
                values={name: table[name].cast(pa.float64()).to_numpy() for name in self.columns},
                decided_by_score=decided_by_score(table, self.limits, self.best, self.score),
            )


def _list_tables(folder: AnyPath) -> list[AnyPath]:
    return [folder / name for name in list_names(folder) if name.endswith(".parquet") and not name.startswith(".")]


def _find_filtered_folder(folder: AnyPath) -> AnyPath:
    manifest = read_manifest(folder)
    if manifest is not None and manifest["stage"] == "filter":
        return folder
    if not (folder.is_dir() if isinstance(folder, Path) else list_names(folder)):
        raise FileNotFoundError(f"No folder at {folder}.")
    inside = [folder / "filtered" / name for name in list_names(folder / "filtered") if not name.startswith(".")]
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise ValueError(f"{folder} has several filtered sets; give one of {', '.join(map(str, inside))}.")
    raise ValueError(f"{folder} is not an output of `capfilt filter`; give DATA/filtered/NAME.")


def count_downloads(images: AnyPath) -> dict[str, int]:
    """Count the rows of a shard set's own tables by status, most frequent first."""
    counts: Counter[str] = Counter()
    for path in _list_tables(images):
        try:
            table = read_table(path, [], optional=("status",))
        except ValueError:
            # such as a truncated table of another tool
            continue
        if table.column_names:
            for row in pc.value_counts(table["status"]).to_pylist():
                counts[row["values"] or "unknown"] += row["counts"]
    return dict(counts.most_common())
