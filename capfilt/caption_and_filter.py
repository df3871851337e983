"""`capfilt filter --captioner`: captions and scores in one pass that decodes each picture once.

Writes captions/<name>/, scores/ and filtered/, byte for byte as `capfilt caption` and then `capfilt filter` would. The
captions of a shard are written before its scores; a shard with captions is only scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blipcore.io.storage import AnyPath, existing_paths
from capfilt.caption.stage import CaptionConfig, CaptionFolder, CaptionStage, CaptionTable, lock_captions
from capfilt.config import resolve
from capfilt.engine.worker import Worker
from capfilt.filter.config import FilterConfig
from capfilt.filter.find_scores import locate_scores
from capfilt.filter.score import ScoreResult, ScoreStage, make_score_stage, score_shards
from capfilt.filter.stage import (
    compare_thresholds,
    explain_thresholds,
    filter_shards,
    load_labels,
    lock_filtered_set,
    rewrite_shards,
)
from capfilt.pictures.shard_pass import PrepareEach
from capfilt.vlm.cost import Cost

# Settings that captioner and filter share.
SHARED = ("data", "out", "batch_size", "device", "workers", "engine", "rank", "world_size")


@dataclass(kw_only=True)
class CaptionFilterConfig(FilterConfig):
    """Settings of `capfilt filter`, and of captions to write in the same pass."""

    # settings of `capfilt caption`; empty: no captions are written
    captioner: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captioner:
            if self.from_vectors:
                raise ValueError("from_vectors reads no picture, so a captioner cannot write captions in its pass.")
            name = self.captions().name
            if self.sources and name not in self.sources:
                raise ValueError(f"The captioner writes captions '{name}', but sources has no '{name}'; add it.")

    def captions(self) -> CaptionConfig:
        """Return the settings of `capfilt caption`; ValueError if `captioner` has a shared one."""
        shared = [name for name in SHARED if name in self.captioner]
        if shared:
            raise ValueError(f"captioner: remove '{shared[0]}'; the filter's setting is used for both.")
        settings = {"dtype": self.dtype, "backend": self.backend, "numerics": self.numerics, **self.captioner}
        settings |= {name: getattr(self, name) for name in SHARED}
        try:
            return resolve(CaptionConfig, None, (), settings)
        except ValueError as error:
            raise ValueError(f"captioner: {error}") from None


def caption_and_filter(config: CaptionFilterConfig, *, progress: bool = True) -> dict[str, Any]:
    """Caption, score and filter; return the summary. Without a captioner, the same as `filter_shards`."""
    if not config.captioner:
        return filter_shards(config, progress=progress)
    with lock_captions(config.captions()) as captions, lock_filtered_set(config):
        labels, images = load_labels(config), captions.stage.images
        captioned = _captioned_shards(captions.stage)
        scored = _caption_and_score(config, captions, captioned, progress)
        summary = rewrite_shards(config, images, scored, labels, progress=progress)
        return summary | _finish_captions(captions, captioned, summary["shards"]["failed"])


def caption_and_explain(config: CaptionFilterConfig, *, progress: bool = True) -> dict[str, Any]:
    """Caption and score, then return what each threshold would keep; see `explain_thresholds`."""
    if not config.captioner:
        return explain_thresholds(config, progress=progress)
    with lock_captions(config.captions()) as captions:
        labels, images = load_labels(config), captions.stage.images
        captioned = _captioned_shards(captions.stage)
        scored = _caption_and_score(config, captions, captioned, progress)
        summary = compare_thresholds(config, images, scored, labels)
        return summary | _finish_captions(captions, captioned, scored.run.failed)


def _captioned_shards(stage: CaptionStage) -> frozenset[str]:
    tables = {shard: stage.output(shard) for shard in stage.images.shards}
    existing_tables = existing_paths(tables.values())
    return frozenset(shard for shard, table in tables.items() if table in existing_tables)


def _caption_and_score(
    config: CaptionFilterConfig, captions: CaptionFolder, captioned: frozenset[str], progress: bool
) -> ScoreResult:
    images, new_captions = captions.stage.images, {captions.stage.config.name: captions.stage.folder}
    scores = locate_scores(config, images, config.required_columns(), new_captions)
    stage = CaptionAndScoreStage(captions.stage, make_score_stage(config, images, scores), captioned)
    return score_shards(config, images, scores, stage, progress=progress)


def _finish_captions(captions: CaptionFolder, captioned: frozenset[str], failed: dict[str, str]) -> dict[str, Any]:
    """Record the result of the captions; return their part of the summary."""
    stage = captions.stage
    counts = captions.finish(failed, changed=len(captioned) < len(stage.images.shards))
    return {"captions": {"name": stage.config.name, "out": str(stage.folder), "counts": counts}}


@dataclass
class CaptionAndScoreStage:
    """Captions and scores the pictures of a shard in one pass."""

    captioning: CaptionStage
    scoring: ScoreStage
    # shards with captions from an earlier run; they are only scored
    captioned: frozenset[str]
    name: str = "caption and score"

    def output(self, shard: str) -> AnyPath:
        """Return the scores if the shard has captions, otherwise the captions: scores may exist without them."""
        return (self.scoring if shard in self.captioned else self.captioning).output(shard)

    def setup(self, device: str) -> None:
        self.scoring.setup(device)
        if len(self.captioned) < len(self.captioning.images.shards):
            self.captioning.setup(device)

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        captioning, scoring = self.captioning, self.scoring
        if shard in self.captioned:
            return scoring.run(shard, worker)
        source = captioning.config.name
        prepare = PrepareEach((captioning.captioner.prepare, scoring.prepare))
        with scoring.pictures.open(shard, prepare, next_shard=worker.next_shard, cores=worker.cores) as pictures:
            captions_table, scores_table = CaptionTable(), scoring.begin_table(shard, new_captions=source)
            cost = Cost(captioning.captioner, *(scorer.scorer for scorer in scoring.scorers))
            for batch in pictures.batches(scoring.batch_size):
                captions = captioning.caption(batch.select(0))
                captions_table.add(batch.keys, captions)
                texts = [[caption.text for caption in captions_of_picture] for captions_of_picture in captions]
                scores_table.add_captions(source, batch.keys, texts)
                rows = scores_table.add(batch)
                scoring.score(batch.select(1), rows)
                worker.advance(len(batch), cost.since_last())
            counts = captions_table.write(captioning.output(shard), pictures)
            counts |= scores_table.write(scoring.output(shard), pictures)
            return counts | pictures.times() | cost.counts()
