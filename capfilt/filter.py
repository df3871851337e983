"""(picture, text) pairs -> keep or drop with a reason: step 4 of CapFilt, in three steps that meet in tables.

    score     pictures, web texts, captions/<source>/ -> scores/<name>/NNNNN.parquet    score.py
    decide    a table of scores, least values         -> a reason for every row          verdict.py
    rewrite   scores, reasons, the shard's own table  -> filtered/<name>/NNNNN.parquet  one row a pair, dropped ones too

Another threshold uses the scores again, and may be chosen from them (threshold.py). Every text is a row from beginning
to end: texts = kept + dropped, by reason.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from capfilt import engine
from capfilt import threshold as thresholds
from capfilt.lock import claimed
from capfilt.manifest import Manifest, forget_if_empty
from capfilt.readahead import speed
from capfilt.score import CAPTION_COLUMNS, Making, ScoreConfig, Scored, rescore, score_shards
from capfilt.shards import ShardSet, filtered_schema, read_table, write_table
from capfilt.storage import Place, place, present
from capfilt.verdict import KEPT, Best, decide


@dataclass(kw_only=True)
class FilterConfig(ScoreConfig):
    """Which texts to judge, with which model, and what to keep."""

    name: str = "capfilt"  # of the folder under filtered/
    # least ITM probability, 0.5 in the paper; 0 keeps every text there is, auto reaches the target on the labels
    threshold: float | Literal["auto"] = 0.5
    labels: str | None = None  # CSV, JSON lines or Parquet with key, source, index, match
    target: str = "precision=0.9"  # or recall=SHARE, of auto
    top_fraction: float | None = None  # instead of a threshold: this share of the texts, those with the highest ITM
    itc_threshold: float | None = None  # least ITC cosine
    clip_threshold: float | None = None  # least CLIP cosine
    best: int = 0  # at most so many texts of a source for a picture, the best; 0 is all
    best_of: str | None = None  # the score that says which are best, ITM unless given; alone it keeps one
    best_across: bool = False  # the best of all sources together, not of each

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name '{self.name}' must be letters, digits, . _ + or -.")
        if self.threshold != "auto" and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a probability, 0 to 1, or auto, not {self.threshold}.")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction is a share above 0 and up to 1, not {self.top_fraction}.")
        if self.top_fraction is not None and self.threshold != 0.5:
            raise ValueError("Give a threshold or a top fraction, not both.")
        if self.threshold == "auto" and self.labels is None:
            raise ValueError(
                "threshold auto needs labels: a file with key, source, index and match (1 or 0) of some texts."
            )
        if self.best_of is not None and not re.fullmatch(r"itm|itc|clip\d*", self.best_of):
            raise ValueError(f"best_of is a score: itm, itc, clip, or clip2 of a second --clip, not '{self.best_of}'.")
        thresholds.parse_target(self.target)

    def choice(self) -> Best:
        """Which of a picture's texts may stay."""
        if self.best_of is None and not self.best:
            return Best()
        return Best(self.best or 1, self.best_of or "itm", self.best_across)

    def limits(self, threshold: float) -> dict[str, float]:
        """Score column -> the least value that keeps a text."""
        given = {"itm": threshold, "itc": self.itc_threshold, "clip": self.clip_threshold}
        return {column: least for column, least in given.items() if least is not None}

    def decides_by(self) -> dict[str, str]:
        """Score column -> the setting that asks for it."""
        best = self.choice()
        by_best = {best.by: "best_of"} if best.number else {}
        return by_best | ({} if self.clip_threshold is None else {"clip": "clip_threshold"})


@dataclass
class RewriteStage:
    """Rewrites a shard: its scores, whether a row is kept and why, where its picture came from. Tables only."""

    images: ShardSet
    scores: Place
    columns: list[str]  # of scores
    captions: dict[str, Place | None]
    limits: dict[str, float]
    best: Best
    folder: Place
    name: str = "rewrite"

    def output(self, shard: str) -> Place:
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

    def _require_unchanged(self, table: pa.Table, source: str, path: Place) -> None:
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


def filter_shards(config: FilterConfig, *, making: Making | None = None, progress: bool = True) -> dict[str, Any]:
    """Score what has no scores yet, decide, rewrite; the summary counts all shards, also those of earlier runs.

    Raises ValueError or FileNotFoundError, one sentence, for a folder that is no shard set, a checkpoint without the
    heads, captions that are missing, unfinished or made anew since they were scored, or a folder of that name made
    with other settings.
    """
    images = ShardSet.open(config.data)
    folder = config.root / "filtered" / config.name
    with claimed(folder, config.rank, config.world_size):
        return _filter(config, images, folder, making, progress)


def _filter(
    config: FilterConfig, images: ShardSet, folder: Place, making: Making | None, progress: bool
) -> dict[str, Any]:
    labels = _labels(config)  # first: what is wrong with them is better told before the pictures are read
    scored, best = score_shards(config, config.decides_by(), making=making, progress=progress), config.choice()
    threshold, why = config.threshold, None
    if threshold == "auto" or config.top_fraction is not None or config.labels is not None:
        threshold, why = _choose(config, _judge(config, images, scored, labels))
    limits = config.limits(threshold)
    if config.world_size == 1:
        forget_if_empty(folder)
    manifest = Manifest.begin(
        folder,
        "filter",
        {"limits": limits, **_in_manifest(best), "sources": list(scored.captions), "scored_with": scored.made_with},
        images=images.path,
        parents=[scored.folder, *(path for path in scored.captions.values() if path)],
        packages=("pyarrow",),
        shared=config.world_size > 1,
    )
    stage = RewriteStage(images, scored.folder, scored.columns, scored.captions, limits, best, folder)
    mine = config.share(images.shards)
    ready = [shard for shard in mine if shard not in scored.ran.failed]
    workers = min(engine.cores(), 1 + len(ready) // 8, 8)
    ran = engine.run(stage, ready, workers=workers, device="cpu", engine="threads", progress=progress)
    failed = scored.ran.failed | ran.failed
    counts = manifest.settle({s: stage.output(s) for s in images.shards}, mine, failed, changed=ran.done > 0)
    return {
        "stage": "filter",
        "name": config.name,
        "out": str(folder),
        "scores": str(scored.folder),
        "threshold": threshold,
        "why": why,
        "shards": {"done": ran.done, "skipped": ran.skipped, "failed": failed},
        "counts": scored.counts,
        **_verdict(counts),
        "seconds": round(scored.ran.seconds + ran.seconds, 2),
        **speed(scored.ran.counts, scored.ran.seconds, "texts_scored"),
        **speed(scored.ran.counts, scored.ran.seconds, "pictures"),
    }


def _in_manifest(best: Best) -> dict[str, Any]:
    """Settings of a choice; what is as usual goes without saying."""
    told = {"best": best.number, "best_of": best.by, "best_across": best.across}
    return {name: value for name, value in told.items() if name == "best" or value not in ("itm", False)}


def _choose(config: FilterConfig, judged: thresholds.Judged) -> tuple[float, str]:
    """The threshold that the settings ask for, and what speaks for it."""
    if config.top_fraction is not None:
        return thresholds.choose_by_share(judged, config.top_fraction)
    if config.threshold == "auto":
        return thresholds.choose_by_target(judged, config.target)
    return config.threshold, thresholds.in_words(judged, config.threshold)


def _labels(config: FilterConfig) -> pa.Table | None:
    return thresholds.read_labels(place(config.labels)) if config.labels else None


def _judge(config: FilterConfig, images: ShardSet, scored: Scored, labels: pa.Table | None) -> thresholds.Judged:
    paths = [scored.folder / f"{shard}.parquet" for shard in images.shards]
    there = present(paths)
    if len(there) < len(paths):
        raise ValueError(
            f"{len(paths) - len(there)} of {len(paths)} shards have no scores yet, and a threshold is chosen over "
            "all of them; run the same command with a number as --threshold first."
        )
    limits, best = config.limits(0.0), config.choice()
    columns = ["key", "source", "index", "text", *dict.fromkeys([*limits, best.by]), "error"]
    return thresholds.judge((read_table(path, columns) for path in paths), list(scored.captions), limits, best, labels)


def explain_thresholds(config: FilterConfig, *, making: Making | None = None, progress: bool = True) -> dict[str, Any]:
    """What each of a row of thresholds would keep, over scores that are made if need be; rewrites nothing."""
    images, labels = ShardSet.open(config.data), _labels(config)
    scored = score_shards(config, config.decides_by(), making=making, progress=progress)
    judged = _judge(config, images, scored, labels)
    try:
        threshold, why = _choose(config, judged)
    except ValueError as error:  # no threshold does; the table shows how far they get
        threshold, why = FilterConfig.threshold, str(error)
    rows = thresholds.explain(judged.to_judge() if config.threshold == "auto" else judged, threshold)
    return {
        "stage": "explain",
        "scores": str(scored.folder),
        "texts": judged.texts,
        "decided_by_itm": len(judged.itm),
        "labelled": int((judged.label >= 0).sum()),
        "threshold": threshold,
        "why": why,
        "thresholds": rows,
    }


def _verdict(counts: dict[str, int]) -> dict[str, Any]:
    """Texts = kept + dropped by reason, in all and by source.

    `noise_ratio` is the paper's: the share of judged texts that the scores reject (there 25% with nucleus captions).
    """
    by_source: dict[str, dict[str, Any]] = {}
    dropped: Counter[str] = Counter()
    for name, count in counts.items():
        source, _, reason = name.partition("/")
        of_source = by_source.setdefault(source, {"texts": 0, "kept": 0, "dropped": {}})
        of_source["texts"] += count
        if reason == KEPT:
            of_source["kept"] = count
        else:
            of_source["dropped"][reason] = count
            dropped[reason] += count
    texts, kept = (sum(of_source[name] for of_source in by_source.values()) for name in ("texts", "kept"))
    rejected = sum(count for reason, count in dropped.items() if "<" in reason)
    return {
        "texts": texts,
        "kept": kept,
        "dropped": dict(dropped),
        "keep_share": round(kept / texts, 4) if texts else None,
        "noise_ratio": round(rejected / (kept + rejected), 4) if kept + rejected else None,
        "by_source": by_source,
    }
