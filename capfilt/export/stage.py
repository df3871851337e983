"""`capfilt export`: writes kept pictures and texts in the formats of other trainers, see formats.py.

Each picture with a kept text is exported once: `text` has the highest ITM, or is drawn by the mixture, and
`caption_<source>` is the best of each source. With `decontaminate`, copies of evaluation pictures are left out.
`.index/NNNNN.parquet` has the outcome of every picture, README.md is a dataset card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from blipcore.io.lock import lock_folder
from blipcore.io.samples import IndexedTar, TarSample
from blipcore.io.storage import AnyPath, existing_paths, to_path
from blipcore.io.text_mixture import TextMixture, draw, hash_fraction
from blipcore.io.writing import write_text
from capfilt.engine.run import EngineConfig, run_shards
from capfilt.engine.worker import Worker
from capfilt.export.card import dataset_card
from capfilt.export.columns import ExportColumns, KeptPicture, Row
from capfilt.export.decontaminate import EvaluationPictures
from capfilt.export.formats import WRITERS, Format, Writer
from capfilt.export.names import key_prefixes
from capfilt.filter.filtered_set import FilteredSet
from capfilt.shards.input_check import digest_tar, input_digests, input_name, require_same_inputs
from capfilt.shards.manifest import Manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_footer_counts, read_table, write_table

EXPORTED, CONTAMINATED, MISSING = "exported", "contaminated", "missing"
INDEX = pa.schema([("key", pa.string()), ("outcome", pa.string()), ("texts", pa.int32())])
# Outcome of pictures whose kept texts have no share in the mixture, or are not of the format's source.
NO_TEXT = "no_text_to_export"


@dataclass
class ExportConfig(EngineConfig):
    """Settings of `capfilt export`."""

    # filtered/<name>, or a shard set that was filtered once
    dataset: str
    out: str
    format: Format = "webdataset"
    # how often a trainer draws each text, see `TextMixture`; default: `text` is the best one
    mixture: str | None = None
    # folders of evaluation pictures, whose copies are left out
    decontaminate: list[str] = field(default_factory=list)
    # of the texts and pictures, for the dataset card
    licence: str | None = None


@dataclass
class ExportStage:
    """Writes the kept pictures and texts of one shard."""

    images: ShardSet
    filtered: AnyPath
    folder: AnyPath
    writer: Writer
    evaluation_pictures: EvaluationPictures
    name: str = "export"

    def output(self, shard: str) -> AnyPath:
        # Hidden, so that `datasets` does not take it for data; written last.
        return self.folder / ".index" / f"{shard}.parquet"

    def inputs(self, shard: str) -> list[AnyPath]:
        """Return what the output is made from."""
        return [self.filtered / f"{shard}.parquet", self.images.tar(shard)]

    def setup(self, device: str) -> None:
        """Load nothing."""

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        outcomes: dict[str, tuple[str, int]] = {}
        inputs = input_digests([self.filtered / f"{shard}.parquet"])
        draws = Counter[str]()
        self.writer.write(shard, self._kept_pictures(shard, outcomes, inputs, draws))
        rows = [(key, outcome, texts) for key, (outcome, texts) in outcomes.items()]
        outcome_counts = Counter(outcome for _, outcome, _ in rows)
        counts = dict.fromkeys((EXPORTED, CONTAMINATED, MISSING), 0) | dict(outcome_counts) | dict(draws)
        counts["texts"] = sum(texts for _, outcome, texts in rows if outcome == EXPORTED)
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        index = pa.table(columns, schema=INDEX)
        write_table(self.output(shard), index, counts, make_folder=False, inputs=inputs)
        return counts

    def _kept_pictures(
        self, shard: str, outcomes: dict[str, tuple[str, int]], inputs: dict[str, str], draws: Counter[str]
    ) -> Iterator[KeptPicture]:
        """Yield the pictures to export.

        Record outcome and number of texts of each picture in `outcomes`, the digest of the tar in `inputs`, and with a
        mixture the sources of the texts drawn in `draws`.
        """
        kept = self._read_texts(shard)
        for key, texts in kept.items():
            outcomes[key] = (MISSING if texts else NO_TEXT, len(texts))
        for sample in self._read_pictures(shard, [key for key, texts in kept.items() if texts], inputs):
            texts = kept[sample.key]
            picture = KeptPicture(sample, texts, self._choose_text(shard, sample.key, texts))
            outcome = CONTAMINATED if sample.image in self.evaluation_pictures else EXPORTED
            outcome = self.writer.refuse(sample.image, picture.text) or outcome
            outcomes[sample.key] = (outcome, len(texts))
            if outcome == EXPORTED:
                if self.columns.mixture is not None:
                    draws[f"drawn/{picture.text['source']}"] += 1
                    draws.update(f"without/{name}" for name in {*self.columns.sources} - {t["source"] for t in texts})
                yield picture

    @property
    def columns(self) -> ExportColumns:
        return self.writer.columns

    def _read_texts(self, shard: str) -> dict[str, list[Row]]:
        """Return the kept texts of each picture, best first; none for a picture without a text to export."""
        scores, further = self.columns.scores, self.columns.further.names
        columns = ["key", "source", "index", "text", *scores, "keep", "url", "sha256", *further]
        table = read_table(self.filtered / f"{shard}.parquet", columns)
        rows = table.filter(table["keep"]).drop_columns(["keep"]).to_pylist()
        if self.columns.mixture is not None:
            _add_probabilities(self.columns.mixture, rows)
        kept: dict[str, list[Row]] = {}
        for row in rows:
            texts = kept.setdefault(row.pop("key"), [])
            if row.get("probability") != 0 and self.writer.source in (None, row["source"]):
                texts.append(row)
        for texts in kept.values():
            texts.sort(key=lambda row: -(row[scores[0]] or 0.0))
        return kept

    def _read_pictures(self, shard: str, keys: list[str], inputs: dict[str, str]) -> Iterator[TarSample]:
        """Yield the pictures of these keys in the order of the tar, without their bytes if nothing reads them."""
        if not self.writer.reads_pictures and not len(self.evaluation_pictures):
            yield from (TarSample(key, b"") for key in keys)
            return
        wanted = set(keys)
        with IndexedTar(self.images.tar(shard)) as tar:
            inputs[input_name(self.images.tar(shard))] = digest_tar(tar)
            for key, members in tar.samples.items():
                image = tar.read(members.image) if key in wanted else None
                if image is not None:
                    yield TarSample(key, image)

    def _choose_text(self, shard: str, key: str, texts: list[Row]) -> Row:
        """Return the text that the mixture draws, the same in every run; without a mixture the best."""
        if self.columns.mixture is None:
            return texts[0]
        fraction = hash_fraction("text", self.columns.key(shard, key))
        return texts[draw([row["probability"] for row in texts], fraction)]


def _add_probabilities(mixture: TextMixture, rows: list[Row]) -> None:
    """Add the `probability` of each kept text among those of its picture."""
    keys, sources, texts = ([row[name] for row in rows] for name in ("key", "source", "text"))
    scores = [row[mixture.score] for row in rows] if mixture.score else None
    shares = mixture.probabilities(keys, sources, texts, scores)
    for row, share in zip(rows, shares.tolist(), strict=True):
        row["probability"] = share


def export_shards(config: ExportConfig, *, progress: bool = True) -> dict[str, Any]:
    """Export the kept pictures of a filtered set; returns a summary with the counts of all runs.

    Raises ValueError or FileNotFoundError if the set or its pictures cannot be read, or `out` has other settings.
    """
    data, folder = FilteredSet.open(config.dataset), to_path(config.out)
    images = ShardSet.open(data.images)
    shards = [table.stem for table in data.tables]
    mixture = None if config.mixture is None else TextMixture.parse(config.mixture)
    if mixture is not None:
        mixture.require(data.sources, data.columns, data.folder)
    columns = ExportColumns(data.sources, data.columns, data.further, key_prefixes(shards), mixture)
    writer = WRITERS[config.format](folder, columns)
    if mixture is not None and not writer.mixes:
        raise ValueError(f"The format {config.format} has no probabilities; leave out the mixture '{config.mixture}'.")
    evaluation_pictures = EvaluationPictures(config.decontaminate)
    if config.decontaminate and not len(evaluation_pictures):
        raise ValueError(f"No picture below {', '.join(config.decontaminate)} can be decoded; give other folders.")
    with lock_folder(folder, config.rank, config.world_size):
        manifest = Manifest.begin(
            folder,
            "export",
            {"format": config.format, "decontaminate": config.decontaminate, "licence": config.licence}
            | ({} if config.mixture is None else {"mixture": config.mixture}),
            images=images.path,
            parents=[data.folder],
            shared=config.world_size > 1,
        )
        stage = ExportStage(images, data.folder, folder, writer, evaluation_pictures)
        stage.output(shards[0]).parent.mkdir(parents=True, exist_ok=True)
        own_shards = config.shards_of_rank(shards)
        indexes = {shard: stage.output(shard) for shard in shards}
        remedy = f"delete {folder}, or give another folder"
        require_same_inputs({index: stage.inputs(shard) for shard, index in indexes.items()}, remedy)
        writer.begin(own_shards, shared=config.world_size > 1)
        result = run_shards(
            stage, own_shards, workers=config.workers, device="cpu", engine=config.engine, progress=progress
        )
        counts = manifest.record_run(indexes, own_shards, result.failed, changed=result.done > 0)
        if len(existing_paths(indexes.values())) == len(shards):
            writer.finish(shards, [counted[EXPORTED] for counted in read_footer_counts(indexes.values())])
            card = dataset_card(data, config.format, counts, config.decontaminate, config.licence, mixture)
            write_text(folder / "README.md", card)
    return {
        "stage": "export",
        "out": str(folder),
        "shards": {"done": result.done, "skipped": result.skipped, "failed": result.failed},
        "counts": counts,
        "seconds": round(result.seconds, 2),
    }
