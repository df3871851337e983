"""(picture, text) pairs -> keep or drop with a reason: step 4 of CapFilt, in three steps that meet in tables.

    score     pictures, web texts, captions/<source>/ -> scores/<name>/NNNNN.parquet    score.py
    decide    a table of scores, least values         -> a reason for every row          verdict.py
    rewrite   scores, reasons, the shard's own table  -> filtered/<name>/NNNNN.parquet  one row a pair, dropped ones too

Another threshold uses the scores again, and may be chosen from them (threshold.py). Every text is a row from beginning
to end: texts = kept + dropped, by reason.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from blipcore.io.storage import AnyPath, existing, to_path
from capfilt.engine import run as engine
from capfilt.engine.worker import cores
from capfilt.filter import threshold as thresholds
from capfilt.filter.config import FilterConfig
from capfilt.filter.decide import KEPT, Best
from capfilt.filter.labels import read_labels
from capfilt.filter.rewrite import RewriteStage
from capfilt.filter.score import Making, Scored, score_shards
from capfilt.pictures.read_ahead import speed
from capfilt.shards.lock import lock_folder
from capfilt.shards.manifest import Manifest, forget_if_empty
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table


def filter_shards(config: FilterConfig, *, making: Making | None = None, progress: bool = True) -> dict[str, Any]:
    """Score what has no scores yet, decide, rewrite; the summary counts all shards, also those of earlier runs.

    Raises ValueError or FileNotFoundError, one sentence, for a folder that is no shard set, a checkpoint without the
    heads, captions that are missing, unfinished or made anew since they were scored, or a folder of that name made
    with other settings.
    """
    images = ShardSet.open(config.data)
    folder = config.root / "filtered" / config.name
    with lock_folder(folder, config.rank, config.world_size):
        return _filter(config, images, folder, making, progress)


def _filter(
    config: FilterConfig, images: ShardSet, folder: AnyPath, making: Making | None, progress: bool
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
    workers = min(cores(), 1 + len(ready) // 8, 8)
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
    return read_labels(to_path(config.labels)) if config.labels else None


def _judge(config: FilterConfig, images: ShardSet, scored: Scored, labels: pa.Table | None) -> thresholds.Judged:
    paths = [scored.folder / f"{shard}.parquet" for shard in images.shards]
    there = existing(paths)
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
