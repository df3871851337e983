"""Filters (picture, text) pairs: step 4 of CapFilt, in three steps that communicate by tables.

    score     pictures, web texts, captions/<source>/ -> scores/<name>/NNNNN.parquet     score.py
    decide    a table of scores, thresholds           -> a reason for every row          decide.py
    rewrite   scores, reasons, the shard's own table  -> filtered/<name>/NNNNN.parquet   rewrite.py

Another threshold reuses the scores, from which it may also be chosen (threshold.py). Every text stays a row:
texts = kept + dropped, by reason.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa

from blipcore.device import count_cores
from blipcore.io.lock import lock_folder
from blipcore.io.storage import AnyPath, to_path
from capfilt.engine.run import run_shards
from capfilt.filter.choose import choose, choose_threshold, read_decided
from capfilt.filter.computed import declare_computed, recorded_settings
from capfilt.filter.config import FilterConfig
from capfilt.filter.decide import KEPT, BestTexts
from capfilt.filter.find_scores import locate_scores
from capfilt.filter.labels import read_labels
from capfilt.filter.rewrite import RewriteStage
from capfilt.filter.score import ScoreResult, score_shards
from capfilt.filter.threshold_table import strata_table, threshold_table
from capfilt.pictures.read_ahead import throughput
from capfilt.shards.further_columns import further_schema
from capfilt.shards.input_check import require_same_inputs
from capfilt.shards.manifest import Manifest, remove_manifest_if_empty
from capfilt.shards.shard_set import ShardSet
from capfilt.vlm.cost import dollars


def filter_shards(config: FilterConfig, *, progress: bool = True) -> dict[str, Any]:
    """Score what has no scores yet, decide and rewrite; return a summary with the counts of all shards.

    Raises ValueError or FileNotFoundError for a folder that is no shard set, a checkpoint without ITM and ITC heads,
    captions that are missing, unfinished or changed, and a set of that name with other settings.
    """
    images = ShardSet.open(config.data)
    with lock_filtered_set(config):
        labels = load_labels(config)
        scores = locate_scores(config, images, config.required_columns())
        scored = score_shards(config, images, scores, progress=progress)
        return rewrite_shards(config, images, scored, labels, progress=progress)


def explain_thresholds(config: FilterConfig, *, progress: bool = True) -> dict[str, Any]:
    """Score what has no scores yet; return what each threshold of a range would keep. Write no filtered table."""
    images, labels = ShardSet.open(config.data), load_labels(config)
    scores = locate_scores(config, images, config.required_columns())
    scored = score_shards(config, images, scores, progress=progress)
    return compare_thresholds(config, images, scored, labels)


def lock_filtered_set(config: FilterConfig) -> AbstractContextManager[Any]:
    return lock_folder(_filtered_folder(config), config.rank, config.world_size)


def load_labels(config: FilterConfig) -> pa.Table | None:
    """Read the labels, if any; call it before scoring, to find mistakes early."""
    return read_labels(to_path(config.labels)) if config.labels else None


def rewrite_shards(
    config: FilterConfig, images: ShardSet, scored: ScoreResult, labels: pa.Table | None, *, progress: bool = True
) -> dict[str, Any]:
    """Decide on all scored texts, write the filtered tables and return the summary."""
    folder, scores, best = _filtered_folder(config), scored.folder, config.best_texts()
    choice = choose(config, images, scored, labels)
    if config.world_size == 1:
        remove_manifest_if_empty(folder)
    settings = {
        **choice.settings(config),
        **_best_settings(best),
        **({"repair": True} if config.repair else {}),
        "sources": list(scores.captions),
        "scored_with": scores.settings,
    }
    further, computed = further_schema(images), declare_computed(scores.columns, scores.captions)
    computed += [choice.mix] if choice.mix is not None else []
    manifest = Manifest.begin(
        folder,
        "filter",
        settings,
        images=images.path,
        parents=[scores.path, *(path for path in scores.captions.values() if path)],
        packages=("pyarrow", *(["scikit-learn"] if choice.mix is not None and labels is not None else [])),
        shared=config.world_size > 1,
        unchecked={
            "further_columns": further.names,
            **({"computed": recorded_settings(computed)} if computed else {}),
            **({"labels": config.labels} if config.labels else {}),
            **({"strata": list(choice.strata_rows)} if choice.strata_rows else {}),
        },
    )
    computed = declare_computed(scores.columns, scores.captions, manifest.content.get("computed", {}))
    if "further_columns" not in manifest.content:  # begun by a version that kept none
        further = pa.schema([])
    stage = RewriteStage(
        images,
        scores.path,
        scores.columns,
        scores.captions,
        choice.limits,
        best,
        folder,
        further,
        config.repair,
        computed,
        config.score,
        choice.strata,
    )
    shards = config.shards_of_rank(images.shards)
    remedy = "delete the filtered set, or give another --name"
    require_same_inputs({stage.output(shard): stage.inputs(shard) for shard in shards}, remedy)
    scored_shards = [shard for shard in shards if shard not in scored.run.failed]
    workers = min(count_cores(), 1 + len(scored_shards) // 8, 8)
    run = run_shards(stage, scored_shards, workers=workers, device="cpu", engine="threads", progress=progress)
    failed = scored.run.failed | run.failed
    tables = {shard: stage.output(shard) for shard in images.shards}
    counts = manifest.record_run(tables, shards, failed, changed=run.done > 0)
    return {
        "stage": "filter",
        "name": config.name,
        "out": str(folder),
        "scores": str(scores.path),
        "score": config.score,
        "threshold": choice.threshold,
        "why": choice.why or None,
        "signal": choice.signal or None,
        "strata": list(choice.strata_rows),
        "shards": {"done": run.done, "skipped": run.skipped, "failed": failed},
        "counts": scored.counts,
        **_summarize(counts),
        "repaired": {name: counts[name] for name in ("texts_repaired", "sentences_cut") if name in counts},
        "confidence": _describe_confidence(counts),
        "truncated": _describe_truncated(scored.counts, config.sentences),
        "dollars": dollars(scored.run.counts),
        "seconds": round(scored.run.seconds + run.seconds, 2),
        **throughput(scored.run.counts, scored.run.seconds, "texts_scored"),
        **throughput(scored.run.counts, scored.run.seconds, "pictures"),
    }


def compare_thresholds(
    config: FilterConfig, images: ShardSet, scored: ScoreResult, labels: pa.Table | None
) -> dict[str, Any]:
    """Return what each threshold of a range would keep, and what the chosen one keeps of each stratum."""
    texts, _, findings = read_decided(config, images, scored, labels)
    try:
        threshold, reason = choose_threshold(config, texts)
    except ValueError as error:  # no threshold reaches the target; the table shows the values they reach
        threshold, reason = 0.5, str(error)
    return {
        "stage": "explain",
        "scores": str(scored.folder.path),
        "score": config.score,
        "texts": texts.total,
        "decided_by_score": len(texts.values),
        "labelled": len(texts.row),
        "threshold": threshold,
        "why": reason,
        "signal": "; ".join(findings) or None,
        "thresholds": threshold_table(texts, threshold),
        "strata": strata_table(texts, threshold),
    }


def _filtered_folder(config: FilterConfig) -> AnyPath:
    return config.root / "filtered" / config.name


def _best_settings(best: BestTexts) -> dict[str, Any]:
    """Return the settings of `best` for the manifest, which omits defaults of the last two."""
    settings = {"best": best.number, "best_of": best.score, "best_across": best.across_sources}
    return {name: value for name, value in settings.items() if name == "best" or value not in ("itm", False)}


def _describe_confidence(counts: dict[str, int]) -> str | None:
    """Return a sentence about captions without a confidence; None if there are none."""
    texts = counts.get("texts_without_confidence", 0)
    if not texts:
        return None
    return f"{texts:,} synthetic texts have none: their captioner returned no log-probability."


def _describe_truncated(counts: dict[str, int], has_sentences: bool) -> str | None:
    """Return a sentence about texts that are longer than the filter reads; None if there are none."""
    texts, sentences = counts.get("texts_truncated", 0), counts.get("sentences_truncated", 0)
    if not texts:
        return None
    read = f"{texts:,} of {counts['texts_scored']:,} texts are longer than the filter reads: itm is of their start"
    if not has_sentences:
        return f"{read}; --sentences also scores each of their sentences."
    return f"{read}; {sentences:,} of {counts['sentences']:,} sentences are too long even by clause."


def _summarize(counts: dict[str, int]) -> dict[str, Any]:
    """Return texts = kept + dropped by reason, in total and by source, from counts per "source/reason".

    `noise_ratio` is the share of scored texts that the thresholds reject; the paper has 25 % with nucleus captions.
    """
    by_source: dict[str, dict[str, Any]] = {}
    dropped: Counter[str] = Counter()
    for name, count in counts.items():
        source, slash, reason = name.partition("/")
        if not slash:  # a count of `repair`
            continue
        totals = by_source.setdefault(source, {"texts": 0, "kept": 0, "dropped": {}})
        totals["texts"] += count
        if reason == KEPT:
            totals["kept"] = count
        else:
            totals["dropped"][reason] = count
            dropped[reason] += count
    texts = sum(totals["texts"] for totals in by_source.values())
    kept = sum(totals["kept"] for totals in by_source.values())
    rejected = sum(count for reason, count in dropped.items() if "<" in reason)
    return {
        "texts": texts,
        "kept": kept,
        "dropped": dict(dropped),
        "keep_share": round(kept / texts, 4) if texts else None,
        "noise_ratio": round(rejected / (kept + rejected), 4) if kept + rejected else None,
        "by_source": by_source,
    }
