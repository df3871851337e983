"""Rewrites each shard as a table of its texts with scores, verdict and reason."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.filter.decide import KEPT, Best, decide
from capfilt.filter.find_scores import rescore
from capfilt.filter.score import CAPTION_COLUMNS
from capfilt.shards.format import filtered_schema
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, write_table


@dataclass
class RewriteStage:
    """Rewrites a shard: its scores, whether a row is kept and why, where its picture came from. Tables only."""

    images: ShardSet
    scores: AnyPath
    columns: list[str]  # of scores
    captions: dict[str, AnyPath | None]
    limits: dict[str, float]
    best: Best
    folder: AnyPath
    name: str = "rewrite"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def run(self, shard: str) -> dict[str, int]:
        table = read_table(self.scores / f"{shard}.parquet", ["key", "source", "index", "text", *self.columns, "error"])
        table = table.filter(pc.is_in(table["source"], pa.array(list(self.captions), pa.string())))
        for source, folder in self.captions.items():
            if folder is not None:
                self._require_unchanged(table, source, folder / f"{shard}.parquet")
        reasons = decide(table, self.limits, self.best)
        schema = filtered_schema(self.columns)
        verdict = {"keep": pc.equal(reasons, KEPT), "reason": reasons, **self._origins(shard, table["key"])}
        for name, column in verdict.items():
            table = table.append_column(name, column)
        rewritten = table.select(schema.names).cast(schema)
        write_table(self.output(shard), rewritten, self._counts(rewritten), make_folder=False)
        return {"texts": rewritten.num_rows}

    def _origins(self, shard: str, keys: pa.ChunkedArray) -> dict[str, pa.Array | pa.ChunkedArray]:
        """url and sha256 of each key's picture, null where the shard's own table does not tell."""
        nothing = pa.nulls(len(keys), pa.string())
        table = self.images.about(shard, ("url", "sha256"))
        if not table.column_names:
            return {"url": nothing, "sha256": nothing}
        row = pc.index_in(keys, value_set=table["key"].cast(pa.string()).combine_chunks())
        return {name: table[name].take(row) if name in table.column_names else nothing for name in ("url", "sha256")}

    def _require_unchanged(self, table: pa.Table, source: str, path: AnyPath) -> None:
        scored = table.filter(pc.equal(table["source"], source)).select(CAPTION_COLUMNS)
        now = read_table(path, CAPTION_COLUMNS).cast(scored.schema)
        order = [("key", "ascending"), ("index", "ascending")]
        if not (scored.equals(now) or scored.sort_by(order).equals(now.sort_by(order))):
            raise ValueError(f"{path} has changed since it was scored; {rescore(self.scores)}.")

    @staticmethod
    def _counts(table: pa.Table) -> dict[str, int]:
        """Rows by "source/reason"."""
        groups = table.group_by(["source", "reason"]).aggregate([([], "count_all")])
        return {f"{row['source']}/{row['reason']}": row["count_all"] for row in groups.to_pylist()}
