"""`capfilt filter` that writes the captions too: each picture is read and decoded once, for captioner and filter.

In: a shard set. Out: captions/<name>/, scores/ and filtered/, byte for byte those of `capfilt caption` and then
`capfilt filter`. A shard's captions are written first, then the scores; a shard that has its captions is only scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blipcore.io.storage import AnyPath, existing
from capfilt.caption.stage import CaptionConfig, CaptionStage, captioning
from capfilt.config import resolve
from capfilt.engine.worker import Stage
from capfilt.filter.config import FilterConfig
from capfilt.filter.score import ScoreStage, Texts
from capfilt.filter.stage import filter_shards
from capfilt.pictures.shard_pass import Viewer

SHARED = ("data", "out", "batch_size", "device", "workers", "engine", "rank", "world_size")  # one pass has one of each


@dataclass(kw_only=True)
class CaptionFilterConfig(FilterConfig):
    """What to judge, and which captions to write on the way."""

    captioner: dict[str, Any] = field(default_factory=dict)  # settings of `capfilt caption`; none where empty

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captioner:
            name = self.captions().name
            if self.sources and name not in self.sources:
                raise ValueError(f"The captions '{name}' are to be written, but sources leaves them out.")

    def captions(self) -> CaptionConfig:
        """The settings that `capfilt caption` would have; ValueError for those that are the filter's to say."""
        if taken := [name for name in SHARED if name in self.captioner]:
            raise ValueError(f"captioner: leave out '{taken[0]}'; the filter's holds for both.")
        shared = {name: getattr(self, name) for name in SHARED}
        try:
            own = {"dtype": self.dtype, "backend": self.backend, **self.captioner}
            return resolve(CaptionConfig, None, (), own | shared)
        except ValueError as error:
            raise ValueError(f"captioner: {error}") from None


def caption_and_filter(
    config: CaptionFilterConfig, *, then: Callable[..., dict[str, Any]] = filter_shards, progress: bool = True
) -> dict[str, Any]:
    """Caption, where a captioner is given, and `then` filter, or explain, in one pass over the pictures."""
    if not config.captioner:
        return then(config, progress=progress)
    with captioning(config.captions()) as job:
        tables = {shard: job.stage.output(shard) for shard in job.stage.images.shards}
        there = existing(tables.values())
        making = Making(job.stage, {shard for shard, table in tables.items() if table in there})
        summary = then(config, making=making, progress=progress)
        failed = summary.get("shards", {}).get("failed", {})
        counts = job.settle(failed, changed=len(there) < len(tables))
    return summary | {"captions": {"name": making.source, "out": str(making.folder), "counts": counts}}


class Making:
    """Captions that are written in the pass of the scores: a `score.Making`."""

    def __init__(self, stage: CaptionStage, captioned: set[str]) -> None:
        self.stage, self.captioned = stage, captioned
        self.source, self.folder = stage.config.name, stage.folder

    def together(self, scores: ScoreStage) -> Stage:
        return OnePass(self.stage, scores, self.captioned)


@dataclass
class OnePass:
    """Captions and scores the pictures of a shard."""

    caption: CaptionStage
    score: ScoreStage
    captioned: set[str]  # shards whose captions were there when the run began
    name: str = "caption and score"

    def output(self, shard: str) -> AnyPath:
        """The table that is written last, or captions that are missing though their scores are there."""
        return (self.score if shard in self.captioned else self.caption).output(shard)

    def setup(self, device: str) -> None:
        self.score.setup(device)
        if len(self.captioned) < len(self.caption.images.shards):
            self.caption.setup(device)

    def run(self, shard: str) -> dict[str, int]:
        if shard in self.captioned:
            return self.score.run(shard)
        return self.score.look(shard, lambda: self._begin(shard))

    def _begin(self, shard: str) -> list[Viewer]:
        said: Texts = {}
        return [self.caption.begin(shard, said), self.score.begin(shard, {self.caption.config.name: said})]
