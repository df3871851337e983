"""The last step of `capfilt filter`: rewrites each shard as a table of its texts with scores and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.engine.worker import Worker
from capfilt.filter.computed import CAPTION_SCORES, ComputedScore, append_computed
from capfilt.filter.decide import KEPT, BestTexts, decide
from capfilt.filter.find_scores import CAPTIONS_TABLE_COLUMNS, rescore_advice
from capfilt.filter.judge import JUDGE_ERROR
from capfilt.filter.repair import REPAIRED, repair
from capfilt.filter.sentences import SENTENCES
from capfilt.filter.strata import Strata
from capfilt.shards.format import WEB, filtered_schema
from capfilt.shards.further_columns import cast_cells, rename_clashes
from capfilt.shards.input_check import input_digests
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
    # columns of the input in the shards' own tables
    further: pa.Schema
    # drop the sentences below the limit of itm_min
    repair: bool = False
    # further score columns
    computed: Sequence[ComputedScore] = ()
    # the deciding score, and its limits where they differ by stratum
    score: str = "itm"
    strata: Strata | None = None
    name: str = "rewrite"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def inputs(self, shard: str) -> list[AnyPath]:
        """Return the tables that the output is made from."""
        captions = [folder for folder in self.captions.values() if folder is not None]
        return [folder / f"{shard}.parquet" for folder in (self.scores, *captions)]

    def setup(self, device: str) -> None:
        """Load nothing."""

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        columns = ["key", "source", "index", "text", *self.columns, "error"]
        score_names = [*self.columns, *(score.name for score in self.computed)]
        table = read_table(self.scores / f"{shard}.parquet", columns, optional=[SENTENCES.name, JUDGE_ERROR.name])
        table = table.filter(pc.is_in(table["source"], pa.array(list(self.captions), pa.string())))
        for source, folder in self.captions.items():
            if folder is not None:
                self._check_unchanged(table, source, folder / f"{shard}.parquet")
        table = append_computed(table, shard, self.computed)
        table = repair(table, self.limits["itm_min"]) if self.repair else table
        reasons = decide(table, self.limits, self.best, self.score, self.strata)
        of_sentences = [field for field in (*REPAIRED, SENTENCES, JUDGE_ERROR) if field.name in table.column_names]
        ours = pa.schema([*filtered_schema(score_names), *of_sentences])
        names = rename_clashes(self.further.names, ours.names, ours=False)
        further = [pa.field(names[field.name], field.type) for field in self.further]
        schema = pa.schema([*ours, *further])
        verdicts = {"keep": pc.equal(reasons, KEPT), "reason": reasons}
        of_pictures = self._picture_columns(shard, table["key"])
        verdicts |= {name: of_pictures[name] for name in ("url", "sha256")}
        verdicts |= {names[field.name]: of_pictures[field.name] for field in self.further}
        for name, column in verdicts.items():
            table = table.append_column(name, column)
        rewritten = table.select(schema.names).cast(schema)
        inputs = input_digests(self.inputs(shard))
        write_table(self.output(shard), rewritten, self._count_reasons(rewritten), make_folder=False, inputs=inputs)
        return {"texts": rewritten.num_rows}

    def _picture_columns(self, shard: str, keys: pa.ChunkedArray) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Return url, sha256 and the further columns of each key's picture, null if unknown."""
        types = {"url": pa.string(), "sha256": pa.string(), **{field.name: field.type for field in self.further}}
        table = self.images.read_own_table(shard, tuple(types))
        columns = {name: pa.nulls(len(keys), data_type) for name, data_type in types.items()}
        if table.column_names:
            row = pc.index_in(keys, value_set=table["key"].combine_chunks())
            for name in set(types) & set(table.column_names):
                columns[name] = cast_cells(table[name].take(row), types[name])
        return columns

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
        counts = {f"{row['source']}/{row['reason']}": row["count_all"] for row in groups.to_pylist()}
        for name in CAPTION_SCORES & set(table.column_names):
            of_captions = table.filter(pc.and_(pc.not_equal(table["source"], WEB), pc.is_valid(table["text"])))
            if of_captions[name].null_count:
                counts[f"texts_without_{name}"] = of_captions[name].null_count
        if REPAIRED.names[0] in table.column_names:
            counts["texts_repaired"] = len(table) - table["original"].null_count
            counts["sentences_cut"] = pc.sum(pc.list_value_length(table["cut"])).as_py() or 0
        return counts
