"""Scores the texts of pictures: the first step of `capfilt filter`, and its only pass over the pictures.

Reads `NNNNN.tar` with web texts and `captions/<source>/NNNNN.parquet`. Writes `scores/<name>/NNNNN.parquet` with key,
source, index, text, one column per score, and `error` if the picture could not be decoded. Every text is a row.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import pyarrow as pa

from blipcore.checkpoints.numerics import describe_numerics
from blipcore.device import Backend
from blipcore.io.lock import lock_folder
from blipcore.io.samples import choose_text
from blipcore.io.storage import AnyPath
from capfilt.engine.run import RunSummary, run_shards
from capfilt.engine.worker import Stage, Worker
from capfilt.filter.config import ScoreConfig
from capfilt.filter.find_scores import CAPTIONS_TABLE_COLUMNS, ScoreFolder, rescore_advice
from capfilt.filter.judge import JUDGE_ERROR
from capfilt.filter.registry import declare_scorers
from capfilt.filter.scorer import Runtime
from capfilt.filter.sentences import SENTENCE_COLUMNS, SENTENCES
from capfilt.filter.stored import StoredPictures, find_vectors
from capfilt.filter.texts import clean_texts
from capfilt.filter.vectors import PICTURE_VECTOR, VECTORS
from capfilt.pictures.batching import BatchSplitter, resolve_batch_size
from capfilt.pictures.read_ahead import PreparedPicture
from capfilt.pictures.shard_pass import PictureBatch, PictureReader, PrepareEach, ShardPass
from capfilt.shards.format import WEB, scores_schema
from capfilt.shards.input_check import require_same_inputs
from capfilt.shards.manifest import Manifest, read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, write_table
from capfilt.vlm.cost import Cost

Row = dict[str, Any]
TextsByKey = dict[str, list[tuple[int, str | None]]]  # key -> (index, text) of each caption


class ScoreTable:
    """The scores table of one shard, in the order of its tar: for each picture the web text, then its captions."""

    def __init__(
        self,
        columns: Sequence[str],
        captions: dict[str, TextsByKey],
        web_texts: Mapping[str, str | None] | None,
        counts: Mapping[str, int],
        has_judge: bool = False,
        has_vectors: bool = False,
    ) -> None:
        """Begin a table with the score `columns`; `counts` are added to its own.

        `web_texts` are those of the shard's own table, for pictures without a text in the tar; None leaves all web
        texts out.
        """
        self.columns, self.captions, self.web_texts, self.counts = columns, captions, web_texts, counts
        self.has_judge, self.has_vectors = has_judge, has_vectors
        self.rows: list[Row] = []

    def add_captions(self, source: str, keys: Sequence[str], texts: Sequence[Sequence[str | None]]) -> None:
        """Add the captions of pictures before their rows."""
        for key, texts_of_picture in zip(keys, texts, strict=True):
            self.captions[source][key] = list(enumerate(texts_of_picture))

    def add(self, batch: PictureBatch) -> list[Row]:
        """Append a row without scores per text of the pictures; return the new rows."""
        rows = []
        for picture in batch.pictures:
            texts: list[tuple[str, int, str | None]] = []
            if self.web_texts is not None:
                texts.append((WEB, 0, choose_text(picture.text, self.web_texts.get(picture.key))))
            for source, by_key in self.captions.items():
                texts += [(source, index, text) for index, text in by_key.pop(picture.key, [])]
            rows += [
                {"key": picture.key, "source": source, "index": index, "text": text, "error": picture.error}
                for source, index, text in texts
            ]
        self.rows += rows
        return rows

    def write(self, path: AnyPath, pictures: ShardPass | StoredPictures) -> dict[str, int]:
        """Write the table with its counts and input in the footer; return the counts.

        Raises ValueError for captions of pictures that are not in the tar.
        """
        for source, remaining in self.captions.items():
            if remaining:
                raise ValueError(
                    f"Captions '{source}' of shard {path.stem} have {len(remaining)} keys that are not in its tar, "
                    f"{next(iter(remaining))} first; they belong to another shard set."
                )
        scored = sum(any(row.get(column) is not None for column in self.columns) for row in self.rows)
        counts = {"texts": len(self.rows), "texts_scored": scored, **pictures.counts, **self.counts}
        is_truncated = [row["truncated"] for row in self.rows if "truncated" in row]
        if any(is_truncated):
            counts["texts_truncated"] = sum(is_truncated)
        schema = pa.schema([*scores_schema(self.columns), ("error", pa.string())])
        if SENTENCE_COLUMNS[0] in self.columns:
            schema = schema.append(SENTENCES)
            sentences = [sentence for row in self.rows for sentence in row.get(SENTENCES.name) or ()]
            counts["sentences"] = len(sentences)
            counts["sentences_truncated"] = sum(sentence["truncated"] for sentence in sentences)
        if self.has_judge:
            schema = schema.append(JUDGE_ERROR)
            reasons = [row[JUDGE_ERROR.name].partition(":")[0] for row in self.rows if row.get(JUDGE_ERROR.name)]
            counts |= {"unjudged": len(reasons), **Counter(f"unjudged/{reason}" for reason in reasons)}
        if self.has_vectors:
            schema = pa.schema([*schema, *VECTORS])
        table = pa.Table.from_pylist(self.rows, schema=schema)
        write_table(path, table, counts, make_folder=False, inputs=pictures.inputs)
        return counts


@dataclass
class ScoreStage:
    """Scores all texts of the pictures of a shard."""

    config: ScoreConfig
    images: ShardSet
    folder: AnyPath
    # source -> folder of its captions, None for the web texts
    captions: dict[str, AnyPath | None]
    dtype: Literal["bf16", "fp32"]
    backend: Backend = "torch"
    name: str = "score"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        self.batch_size = resolve_batch_size(self.config.batch_size, device)
        self.pictures = PictureReader(self.images, ahead=2 * self.batch_size)
        self.scorers = declare_scorers(self.config)
        for scorer in self.scorers:
            scorer.load(Runtime(device, self.dtype, self.backend))
        self.splitters = [BatchSplitter() for _ in self.scorers]
        self.columns = [column for scorer in self.scorers for column in scorer.columns]
        # an answer of a server takes longer than a batch
        self.batches_ahead = max(getattr(scorer.scorer, "batches_ahead", 0) for scorer in self.scorers)
        self.prepare = PrepareEach(tuple(scorer.prepare for scorer in self.scorers))

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        with self.pictures.open(shard, self.prepare, next_shard=worker.next_shard, cores=worker.cores) as pictures:
            table, cost = self.begin_table(shard), Cost(*(scorer.scorer for scorer in self.scorers))
            started: deque[tuple[int, Callable[[], None]]] = deque()
            for batch in pictures.batches(self.batch_size):
                started.append((len(batch), self.start(batch, table.add(batch))))
                if len(started) > self.batches_ahead:
                    _finish(started.popleft(), worker, cost)
            for batch_started in started:
                _finish(batch_started, worker, cost)
            return table.write(self.output(shard), pictures) | pictures.times() | cost.counts()

    def begin_table(self, shard: str, new_captions: str | None = None) -> ScoreTable:
        """Begin the table of a shard; the captions of the source `new_captions` are added later."""
        captions: dict[str, TextsByKey] = {}
        for source, folder in self.captions.items():
            if source == new_captions:
                captions[source] = {}
            elif folder is not None:
                captions[source] = _read_caption_texts(folder / f"{shard}.parquet")
        extra = (bool(self.config.judge.model), self.config.vectors)
        if WEB not in self.captions or self.captions[WEB] is not None:
            return ScoreTable(self.columns, captions, None, {}, *extra)
        own_table = self.images.read_own_table(shard, ("caption",))
        is_unreadable = not own_table.column_names and self.images.table(shard).exists()
        counts = {"table/unreadable": 1} if is_unreadable else {}
        return ScoreTable(self.columns, captions, _texts_of_table(own_table), counts, *extra)

    def score(self, batch: PictureBatch, rows: Sequence[Row]) -> None:
        """Score the rows of a batch that have words and a decoded picture."""
        self.start(batch, rows)()

    def start(self, batch: PictureBatch, rows: Sequence[Row]) -> Callable[[], None]:
        """Begin to score the rows of a batch; return a function that waits for the scores."""
        decoded = [row for row in rows if row["error"] is None]
        cleaned = clean_texts(pa.array([row["text"] for row in decoded], pa.string())).to_pylist()
        rows_by_key: dict[str, list[Row]] = defaultdict(list)
        if self.config.vectors:  # pictures without words have one too
            rows_by_key.update((row["key"], []) for row in decoded)
        for row, words in zip(decoded, cleaned, strict=True):
            if words:
                rows_by_key[row["key"]].append(row)
        if not rows_by_key:
            return lambda: None
        inputs = dict(zip(batch.keys, batch.inputs, strict=True))
        with_words = {key: of_picture for key, of_picture in rows_by_key.items() if of_picture}
        scored = list(chain.from_iterable(with_words.values()))
        is_truncated = self.scorers[0].truncated([row["text"] for row in scored]) if scored else []
        for row, truncated in zip(scored, is_truncated, strict=True):
            row["truncated"] = truncated
        # The filter, the first scorer, gives the vectors.
        groups = [rows_by_key, *[with_words] * (len(self.scorers) - 1)]
        waits = [
            splitter.run(
                scorer.start,
                [inputs[key][position] for key in group],
                [[row["text"] for row in of_picture] for of_picture in group.values()],
            )
            if group
            else []
            for position, (scorer, splitter, group) in enumerate(zip(self.scorers, self.splitters, groups, strict=True))
        ]

        def finish() -> None:
            for scorer, waits_of_scorer, group in zip(self.scorers, waits, groups, strict=True):
                parts = [wait() for wait in waits_of_scorer]
                for column in (*scorer.columns, *scorer.list_columns):
                    scores = chain.from_iterable(part[column] for part in parts)
                    for rows_of_picture, scores_of_picture in zip(group.values(), scores, strict=True):
                        for row, score in zip(rows_of_picture, scores_of_picture, strict=True):
                            row[column] = score
                if self.config.vectors and group is rows_by_key:
                    vectors = chain.from_iterable(part[PICTURE_VECTOR.name] for part in parts)
                    vector_of = dict(zip(group, vectors, strict=True))
                    for row in decoded:
                        row[PICTURE_VECTOR.name] = vector_of.pop(row["key"], None)

        return finish


@dataclass
class StoredScoreStage(ScoreStage):
    """Scores the texts of a shard with stored vectors of its pictures."""

    # scores with vectors
    vectors: AnyPath = field(kw_only=True)

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        table, stored = self.begin_table(shard), StoredPictures.read(self.vectors / f"{shard}.parquet")
        pictures = [
            PreparedPicture(key, None, None if vector is None else [vector], error)
            for key, vector, error in zip(stored.keys, stored.vectors, stored.errors, strict=True)
        ]
        for start in range(0, len(pictures), self.batch_size):
            batch = PictureBatch(pictures[start : start + self.batch_size])
            self.score(batch, table.add(batch))
            worker.advance(len(batch))
        return table.write(self.output(shard), stored)


def _finish(started: tuple[int, Callable[[], None]], worker: Worker, cost: Cost) -> None:
    """Wait for the scores of a batch and report its pictures."""
    pictures, wait = started
    wait()
    worker.advance(pictures, cost.since_last())


def _read_caption_texts(path: AnyPath) -> TextsByKey:
    table = read_table(path, CAPTIONS_TABLE_COLUMNS)
    texts: TextsByKey = defaultdict(list)
    for key, index, text in zip(*(table[name].to_pylist() for name in CAPTIONS_TABLE_COLUMNS), strict=True):
        texts[key].append((index, text))
    return dict(texts)


def _texts_of_table(table: pa.Table) -> dict[str, str | None]:
    """Return key -> web text of a shard's own table."""
    if "caption" not in table.column_names:
        return {}
    return dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))


@dataclass
class ScoreResult:
    """A folder of scores after a run over its shards."""

    folder: ScoreFolder
    # of all shards, or of this rank's until all are done
    counts: dict[str, int]
    run: RunSummary

    def table(self, shard: str) -> AnyPath:
        return self.folder.path / f"{shard}.parquet"


def make_score_stage(config: ScoreConfig, images: ShardSet, scores: ScoreFolder) -> ScoreStage:
    """Return the stage that writes the missing tables of `scores`."""
    settings = scores.settings
    backend = settings.get("backend", "torch")
    if config.from_vectors and not scores.is_complete:
        if WEB in scores.captions_to_score and scores.captions_to_score[WEB] is None:
            raise ValueError("from_vectors reads no tar, so it scores no web texts; name the others with --sources.")
        vectors = find_vectors(config, settings["fingerprint"])
        captions = scores.captions_to_score
        return StoredScoreStage(config, images, scores.path, captions, settings["dtype"], vectors=vectors)
    return ScoreStage(config, images, scores.path, scores.captions_to_score, settings["dtype"], backend)


def score_shards(
    config: ScoreConfig,
    images: ShardSet,
    scores: ScoreFolder,
    stage: Stage | None = None,
    *,
    progress: bool = True,
) -> ScoreResult:
    """Score the shards that have no scores yet.

    `stage` is `make_score_stage(...)`, or one that also writes other tables in the same pass over the pictures.
    """
    settings = scores.settings
    tables = {shard: scores.path / f"{shard}.parquet" for shard in images.shards}
    shards = config.shards_of_rank(images.shards)
    # Several runs may read finished scores at the same time.
    is_finished = scores.is_complete and "counts" in (read_manifest(scores.path) or {})
    with nullcontext() if is_finished else lock_folder(scores.path, config.rank, config.world_size):
        packages = ["torch", "tokenizers", "pillow", "pyarrow"]
        if config.model is not None:
            own = [name for scorer in declare_scorers(config) for name in getattr(scorer.scorer, "packages", ())]
            packages += [name for name in dict.fromkeys(own) if name not in packages]
        packages += ["openvino"] if "openvino" in settings.get("backend", "") else []
        is_shared = is_finished or config.world_size > 1
        manifest = Manifest.begin(
            scores.path, "score", settings, images=images.path, packages=packages, shared=is_shared
        )
        if config.model is not None:
            # for readers; a rerun compares the fingerprint
            manifest.content.setdefault("model", config.model)
            choice = describe_numerics(config.model, config.numerics)
            if choice:
                manifest.content.setdefault("numerics", choice)
        inputs = {tables[shard]: [images.tar(shard)] for shard in shards}
        require_same_inputs(inputs, rescore_advice(scores.path))
        run = run_shards(
            stage or make_score_stage(config, images, scores),
            shards,
            workers=config.workers,
            device=config.device,
            engine=config.engine,
            progress=progress,
        )
        counts = manifest.record_run(tables, shards, run.failed, changed=run.done > 0)
    return ScoreResult(scores, counts, run)
