"""The first step of `capfilt filter`: pictures and their texts -> tables of scores, the only pass over the pictures.

In: `NNNNN.tar` with web texts, `captions/<source>/NNNNN.parquet`. Out: `scores/<name>/NNNNN.parquet` with key, source,
index, text, one column a score, and `error` where the picture could not be decoded. Every text is a row. Tables that
fit what is asked for are used again, so that deciding anew costs no pass over the pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, Protocol

import pyarrow as pa

from blipcore.device import Backend
from blipcore.io.storage import AnyPath, existing
from capfilt.engine import run as engine
from capfilt.engine.worker import Stage
from capfilt.filter.config import ScoreConfig
from capfilt.filter.find_scores import _choose, _clips, _columns, _origin
from capfilt.filter.scorer import Scorer, clip_columns
from capfilt.filter.texts import clean
from capfilt.pictures.batching import Fit, batch_size
from capfilt.pictures.read_ahead import Ready
from capfilt.pictures.shard_pass import Each, Look
from capfilt.shards.format import WEB, read_manifest, scores_schema
from capfilt.shards.lock import lock_folder
from capfilt.shards.manifest import Manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, write_table

CAPTION_COLUMNS = ["key", "index", "text"]


@dataclass
class Scored:
    """Tables of scores for the sources asked for (and perhaps more), and how they came to be."""

    folder: AnyPath
    made_with: dict[str, Any]  # what the scores depend on, as in their manifest
    captions: dict[str, AnyPath | None]  # sources asked for -> folder of their captions, None for the web texts
    counts: dict[str, int]  # of all shards, or of this rank's until all are there
    ran: engine.Summary

    @property
    def columns(self) -> list[str]:
        """Names of the score columns."""
        return _columns(self.made_with)


@dataclass
class ScoreStage:
    """Scores all texts of the pictures of a shard; the engine's view of this step."""

    config: ScoreConfig
    images: ShardSet
    folder: AnyPath
    captions: dict[str, AnyPath | None]
    dtype: Literal["bf16", "fp32"]
    backend: Backend = "torch"
    name: str = "score"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        from capfilt.filter.blip import BlipScorer
        from capfilt.filter.clip import OpenClipScorer

        config = self.config
        self.look = Look(self.images, batch_size(config.batch_size, device))
        blip = BlipScorer(
            config.model,
            first_token=config.first_token,
            tokenizer=config.tokenizer,
            device=device,
            dtype=self.dtype,
            backend=self.backend,
        )
        scorers: list[Scorer] = [blip]
        for spec, column in zip(config.clips, clip_columns(len(config.clips)), strict=True):
            scorers.append(OpenClipScorer(spec, column=column, device=device, dtype=self.dtype))
        self._scorers = [(scorer, Fit()) for scorer in scorers]

    def run(self, shard: str) -> dict[str, int]:
        return self.look(shard, lambda: [self.begin(shard)])

    def begin(self, shard: str, made: Mapping[str, Texts] = MappingProxyType({})) -> Scores:
        """The scores of a shard, to be shown its pictures; captions that are only being `made` are not read."""
        captions = {
            source: made[source] if source in made else read_captions(path / f"{shard}.parquet")
            for source, path in self.captions.items()
            if path
        }
        web, counts = None, {}
        if WEB in self.captions:
            own = self.images.about(shard, ("caption",))
            web = _captions_by_key(own)
            if not own.column_names and self.images.table(shard).exists():
                counts["table/unreadable"] = 1
        return Scores(self._scorers, self.output(shard), web, captions, counts)


Texts = dict[str, list[tuple[int, str | None]]]  # key -> texts with their indices


@dataclass
class Scores:
    """The scores of a shard while its pictures go by: a `look.Viewer`."""

    scorers: list[tuple[Scorer, Fit]]
    output: AnyPath
    web: dict[str, str | None] | None  # what the shard's own table knows; a tar's own texts go before it
    captions: dict[str, Texts]  # taken out as their pictures come
    counts: dict[str, int]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prepare = Each(tuple(scorer.prepare for scorer, _ in self.scorers))

    @property
    def columns(self) -> list[str]:
        """Names of the score columns."""
        return [column for scorer, _ in self.scorers for column in scorer.columns]

    def see(self, batch: Sequence[Ready[Any]]) -> None:
        of_batch: list[list[dict[str, Any]]] = []
        for picture in batch:
            texts = [] if self.web is None else [(WEB, 0, picture.text or self.web.get(picture.key))]
            for source, by_key in self.captions.items():
                texts += [(source, index, text) for index, text in by_key.pop(picture.key, [])]
            of_batch.append(
                [dict(key=picture.key, source=s, index=i, text=t, error=picture.error) for s, i, t in texts]
            )
        self._score(batch, of_batch)
        self.rows += [row for of_picture in of_batch for row in of_picture]

    def close(self, pictures: Mapping[str, int]) -> dict[str, int]:
        for source, left in self.captions.items():
            if left:
                raise ValueError(
                    f"Captions '{source}' of shard {self.output.stem} are for {len(left)} pictures that are not in "
                    f"its tar ({next(iter(left))} first); they belong to another shard set."
                )
        scored = sum(row.get(self.columns[0]) is not None for row in self.rows)
        counts = {"texts": len(self.rows), "texts_scored": scored, **pictures, **self.counts}
        schema = pa.schema([*scores_schema(self.columns), ("error", pa.string())])
        write_table(self.output, pa.Table.from_pylist(self.rows, schema=schema), counts, make_folder=False)
        return counts

    def _score(self, batch: Sequence[Ready[Any]], of_batch: list[list[dict[str, Any]]]) -> None:
        """Write scores into those rows of a batch that have words, of pictures that could be decoded."""
        there = [(picture, rows) for picture, rows in zip(batch, of_batch, strict=True) if picture.error is None]
        words = iter(clean(pa.array([row["text"] for _, rows in there for row in rows], pa.string())).to_pylist())
        judged = [(picture, worded) for picture, rows in there if (worded := [row for row in rows if next(words)])]
        if not judged:
            return
        texts = [[row["text"] for row in rows] for _, rows in judged]
        for order, (scorer, fit) in enumerate(self.scorers):
            parts = fit(scorer.score, [picture.input[order] for picture, _ in judged], texts)
            for column in scorer.columns:
                scores = chain.from_iterable(part[column] for part in parts)
                for (_, rows), of_picture in zip(judged, scores, strict=True):
                    for row, score in zip(rows, of_picture, strict=True):
                        row[column] = score


def read_captions(path: AnyPath) -> dict[str, list[tuple[int, str | None]]]:
    """key -> [(index, text)] of a captions table."""
    table = read_table(path, CAPTION_COLUMNS)
    found: dict[str, list[tuple[int, str | None]]] = defaultdict(list)
    for key, index, text in zip(*(table[name].to_pylist() for name in CAPTION_COLUMNS), strict=True):
        found[key].append((index, text))
    return dict(found)


def _captions_by_key(table: pa.Table) -> dict[str, str | None]:
    """key -> web text of a shard's own table, as far as it tells."""
    if "caption" not in table.column_names:
        return {}
    return dict(zip(map(str, table["key"].to_pylist()), table["caption"].to_pylist(), strict=True))


# ---------------------------------------------------------------------------------------------------- the step


class Making(Protocol):
    """Captions that are written in the same pass over the pictures."""

    source: str
    folder: AnyPath  # with their manifest

    def together(self, scores: ScoreStage) -> Stage:
        """The stage that does both; its outputs are there exactly when both tables are."""


def score_shards(
    config: ScoreConfig,
    needs: Mapping[str, str] = MappingProxyType({}),
    *,
    making: Making | None = None,
    progress: bool = True,
) -> Scored:
    """Score what has no scores yet; `needs` are columns that there must be, each with the setting that asks for it.

    ValueError or FileNotFoundError, one sentence, for what the user can mend.
    """
    images = ShardSet.open(config.data)
    captions = _find_captions(config, images, config.sources, making)
    folder, settings = _choose(config, {source: _origin(path) for source, path in captions.items()})
    columns = _columns(settings)
    if lacking := next((column for column in needs if column not in columns), None):
        raise ValueError(
            f"{needs[lacking]} asks for '{lacking}', and the scores are {', '.join(columns)}; "
            "add --clip open_clip:ARCH/TAG, once for each CLIP score."
        )
    scores = ScoreStage(config, images, folder, captions, settings["dtype"], settings.get("backend", "torch"))
    stage = making.together(scores) if making else scores
    tables, mine = {shard: scores.output(shard) for shard in images.shards}, config.share(images.shards)
    complete = len(existing(map(stage.output, images.shards))) == len(tables)
    finished = complete and "counts" in (read_manifest(folder) or {})
    if not complete:
        if config.model is None or len(config.clips) < len(_clips(settings)):
            raise ValueError(
                f"{folder} is not finished; give the model, and the --clip it was begun with, to finish it."
            )
        scores.captions = _find_captions(config, images, list(settings["sources"]), making)
    # finished scores are only read, by any number of runs at a time
    with nullcontext() if finished else lock_folder(folder, config.rank, config.world_size):
        packages = ("torch", "tokenizers", "pillow", "pyarrow", *(["open_clip_torch"] if settings["clip"] else []))
        packages += ("openvino",) if "openvino" in settings.get("backend", "") else ()
        shared = finished or config.world_size > 1
        manifest = Manifest.begin(folder, "score", settings, images=images.path, packages=packages, shared=shared)
        if config.model is not None:
            manifest.content.setdefault("model", config.model)  # for people; the fingerprint is what is compared
        ran = engine.run(
            stage, mine, workers=config.workers, device=config.device, engine=config.engine, progress=progress
        )
        counts = manifest.settle(tables, mine, ran.failed, changed=ran.done > 0)
    return Scored(folder, settings, captions, counts, ran)


def _find_captions(
    config: ScoreConfig, images: ShardSet, sources: list[str], making: Making | None
) -> dict[str, AnyPath | None]:
    """Source -> folder of its captions (None for "web"), web first, then by name; all finished or being made."""
    places = [config.root / "captions", images.path / "captions"]
    # a folder without a table is what `capfilt caption` leaves when its model cannot be loaded
    begun = [path for root in reversed(places) for path in root.glob("[!.]*") if any(path.glob("*.parquet"))]
    there = {path.name: path for path in begun} | ({making.source: making.folder} if making else {})
    wanted = set(sources or [WEB, *there])
    found: dict[str, AnyPath | None] = {WEB: None} if WEB in wanted else {}
    for name in sorted(wanted - {WEB}):
        if name not in there:
            known = ", ".join([WEB, *sorted(there)])
            raise FileNotFoundError(f"No captions named '{name}' in {places[0]}; the sources there are {known}.")
        found[name] = there[name]
        if making is not None and name == making.source:
            continue
        tables = [there[name] / f"{shard}.parquet" for shard in images.shards]
        lacking = [path.stem for path in sorted(set(tables) - existing(tables))]
        if lacking:
            raise ValueError(
                f"{there[name]} lacks {len(lacking)} of {len(tables)} shards ({lacking[0]} first); run the same "
                "`capfilt caption` again to finish it, or leave it out with --sources."
            )
        read_table(tables[0], CAPTION_COLUMNS)  # a table of another kind is better named before the model is loaded
    return found
