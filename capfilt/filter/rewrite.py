"""The last step of `capfilt filter`: rewrites each shard as a table of its texts with scores and verdicts."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.engine.worker import Worker
from capfilt.filter.decide import KEPT, BestTexts, decide
from capfilt.filter.find_scores import CAPTIONS_TABLE_COLUMNS, rescore_advice
from capfilt.shards.format import filtered_schema
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, write_table


@dataclass
class RewriteStage:
    """Writes the filtered table of a shard: scores, verdict, url and sha256 of the picture. Needs no picture."""

    images: ShardSet
    scores: AnyPath
    # names of the score columns
    columns: list[str]
    # source -> folder of its captions, None for web texts
    captions: dict[str, AnyPath | None]
    limits: dict[str, float]
    best: BestTexts
    folder: AnyPath
    name: str = "rewrite"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        """Load nothing."""

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        table = read_table(self.scores / f"{shard}.parquet", ["key", "source", "index", "text", *self.columns, "error"])
        table = table.filter(pc.is_in(table["source"], pa.array(list(self.captions), pa.string())))
        for source, folder in self.captions.items():
            if folder is not None:
                self._check_unchanged(table, source, folder / f"{shard}.parquet")
        reasons = decide(table, self.limits, self.best)
        schema = filtered_schema(self.columns)
        verdicts = {"keep": pc.equal(reasons, KEPT), "reason": reasons, **self._picture_columns(shard, table["key"])}
        for name, column in verdicts.items():
            table = table.append_column(name, column)
        rewritten = table.select(schema.names).cast(schema)
        write_table(self.output(shard), rewritten, self._count_reasons(rewritten), make_folder=False)
        return {"texts": rewritten.num_rows}

    def _picture_columns(self, shard: str, keys: pa.ChunkedArray) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Return url and sha256 of each key's picture, null if unknown."""
        nulls = pa.nulls(len(keys), pa.string())
        table = self.images.read_own_table(shard, ("url", "sha256"))
        if not table.column_names:
            return {"url": nulls, "sha256": nulls}
        row = pc.index_in(keys, value_set=table["key"].combine_chunks())
        return {name: table[name].take(row) if name in table.column_names else nulls for name in ("url", "sha256")}

    def _check_unchanged(self, table: pa.Table, source: str, path: AnyPath) -> None:
        """Check that the captions at `path` are the scored ones, in any order."""
        scored = table.filter(pc.equal(table["source"], source)).select(CAPTIONS_TABLE_COLUMNS)
        current = read_table(path, CAPTIONS_TABLE_COLUMNS).cast(scored.schema)
        order = [("key", "ascending"), ("index", "ascending")]
        if not (scored.equals(current) or scored.sort_by(order).equals(current.sort_by(order))):
            raise ValueError(f"{path} has changed since it was scored; {rescore_advice(self.scores)}.")

    @staticmethod
    def _count_reasons(table: pa.Table) -> dict[str, int]:
        groups = table.group_by(["source", "reason"]).aggregate([([], "count_all")])
        return {f"{row['source']}/{row['reason']}": row["count_all"] for row in groups.to_pylist()}
