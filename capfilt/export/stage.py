"""`capfilt export`: writes kept pictures and texts in the formats of other trainers.

    webdataset   NNNNN.tar with key.jpg, key.txt and key.json, as open_clip and img2dataset use
    parquet      NNNNN.parquet with pictures and declared features, for `datasets.load_dataset` and the hub's viewer
    json         images/NNNNN/KEY.jpg and pairs.json, one row per text, as BLIP's annotation files

Each picture with a kept text is exported once: `text` has the highest ITM, `caption_<source>` is the best of each
source. With `decontaminate`, copies of evaluation pictures are left out. `.index/NNNNN.parquet` has the outcome of
every picture, README.md is a dataset card.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.lock import lock_folder
from blipcore.io.samples import IndexedTar, TarSample
from blipcore.io.storage import AnyPath, existing_paths, to_path
from blipcore.io.writing import atomic_write, remove_temporary_files, write_json, write_text
from capfilt.engine.run import EngineConfig, run_shards
from capfilt.engine.worker import Worker
from capfilt.export.card import dataset_card
from capfilt.export.decontaminate import EvaluationPictures
from capfilt.export.features import parquet_schema
from capfilt.export.names import FileNames, key_prefixes
from capfilt.filter.filtered_set import FilteredSet
from capfilt.shards.format import picture_suffix, write_shard
from capfilt.shards.further_columns import json_value, rename_clashes
from capfilt.shards.input_check import digest_tar, input_digests, input_name, require_same_inputs
from capfilt.shards.manifest import Manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_footer_counts, read_table, write_table

Format = Literal["webdataset", "parquet", "json"]
EXPORTED, CONTAMINATED, MISSING = "exported", "contaminated", "missing"
INDEX = pa.schema([("key", pa.string()), ("outcome", pa.string()), ("texts", pa.int32())])
# A picture and its kept texts, best first.
KeptPicture = tuple[TarSample, list[dict[str, Any]]]
# Rows per Parquet row group; the hub's viewer reads whole groups, pictures included.
ROW_GROUP_ROWS = 100


@dataclass
class ExportConfig(EngineConfig):
    """Settings of `capfilt export`."""

    # filtered/<name>, or a shard set that was filtered once
    dataset: str
    out: str
    format: Format = "webdataset"
    # folders of evaluation pictures, whose copies are left out
    decontaminate: list[str] = field(default_factory=list)
    # of the texts and pictures, for the dataset card
    licence: str | None = None


@dataclass
class ExportStage:
    """Writes the kept pictures and texts of one shard."""

    images: ShardSet
    filtered: AnyPath
    sources: list[str]
    # names of the score columns; the first one ranks the texts
    scores: list[str]
    folder: AnyPath
    format: Format
    evaluation_pictures: EvaluationPictures
    # columns of the input
    further: pa.Schema
    # shard -> start of its keys
    prefixes: dict[str, str]
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
        write = {"webdataset": self._write_tar, "parquet": self._write_parquet, "json": self._write_list}[self.format]
        write(shard, self._kept_pictures(shard, outcomes, inputs))
        rows = [(key, outcome, texts) for key, (outcome, texts) in outcomes.items()]
        counts = {name: sum(outcome == name for _, outcome, _ in rows) for name in (EXPORTED, CONTAMINATED, MISSING)}
        counts["texts"] = sum(texts for _, outcome, texts in rows if outcome == EXPORTED)
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        index = pa.table(columns, schema=INDEX)
        write_table(self.output(shard), index, counts, make_folder=False, inputs=inputs)
        return counts

    def _kept_pictures(
        self, shard: str, outcomes: dict[str, tuple[str, int]], inputs: dict[str, str]
    ) -> Iterator[KeptPicture]:
        """Yield the pictures to export.

        Record outcome and number of texts of each picture in `outcomes`, and the digest of the tar in `inputs`.
        """
        columns = ["key", "source", "index", "text", *self.scores, "keep", "url", "sha256", *self.further.names]
        table = read_table(self.filtered / f"{shard}.parquet", columns)
        kept: dict[str, list[dict[str, Any]]] = {}
        for row in table.filter(table["keep"]).drop_columns(["keep"]).to_pylist():
            kept.setdefault(row.pop("key"), []).append(row)
        for key, texts in kept.items():
            texts.sort(key=lambda row: -(row[self.scores[0]] or 0.0))
            outcomes[key] = (MISSING, len(texts))
        with IndexedTar(self.images.tar(shard)) as tar:
            inputs[input_name(self.images.tar(shard))] = digest_tar(tar)
            for key, members in tar.samples.items():
                image = tar.read(members.image) if key in kept else None
                if image is None:
                    continue
                outcome = CONTAMINATED if image in self.evaluation_pictures else EXPORTED
                outcomes[key] = (outcome, len(kept[key]))
                if outcome == EXPORTED:
                    yield TarSample(key, image), kept[key]

    def _columns(self, texts: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the columns of a picture other than key and image."""
        row: dict[str, Any] = {"text": texts[0]["text"], "source": texts[0]["source"]}
        for source in self.sources:
            best = next((text for text in texts if text["source"] == source), None)
            row[f"caption_{source}"] = best and best["text"]
            row |= {f"{score}_{source}": best and best[score] for score in self.scores}
        row |= {"url": texts[0]["url"], "sha256": texts[0]["sha256"]}
        names = rename_clashes(self.further.names, {"image", "key", *row}, ours=False)
        return row | {names[name]: texts[0][name] for name in self.further.names}

    def _key(self, shard: str, picture: TarSample) -> str:
        """Return a key that is unique in the export."""
        return self.prefixes[shard] + picture.key

    def _write_tar(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        samples = (
            TarSample(self._key(shard, picture), picture.image, texts[0]["text"], json_value(self._columns(texts)))
            for picture, texts in pictures
        )
        write_shard(self.folder / f"{shard}.tar", samples)

    def _write_parquet(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        schema = parquet_schema(self._column_types())
        with (
            atomic_write(self.folder / f"{shard}.parquet") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            rows: list[dict[str, Any]] = []
            for picture, texts in pictures:
                key = self._key(shard, picture)
                image = {"bytes": picture.image, "path": f"{key}.{picture_suffix(picture.image)}"}
                rows.append({"image": image, "key": key, **self._columns(texts)})
                if len(rows) == ROW_GROUP_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema))

    def _column_types(self) -> dict[str, pa.DataType]:
        """Return the columns of a picture other than its image, as `_columns` fills them."""
        columns = {"key": pa.string(), "text": pa.string(), "source": pa.string()}
        for source in self.sources:
            columns[f"caption_{source}"] = pa.string()
            columns |= {f"{score}_{source}": pa.float32() for score in self.scores}
        columns |= {"url": pa.string(), "sha256": pa.string()}
        names = rename_clashes(self.further.names, {"image", *columns}, ours=False)
        return columns | {names[field.name]: field.type for field in self.further}

    def _write_list(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        """Write images and the shard's part of pairs.json, one JSON object per line."""
        lines, folders, names = io.StringIO(), set[AnyPath](), FileNames()
        for picture, texts in pictures:
            name = f"images/{shard}/{names.choose(picture.key, picture_suffix(picture.image))}"
            path = self.folder / name
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                remove_temporary_files(path.parent)
                folders.add(path.parent)
            with atomic_write(path) as file:
                file.write(picture.image)
            for row in texts:
                pair = {"image": name, "caption": row["text"], "image_id": self._key(shard, picture), **row}
                lines.write(json.dumps(json_value(pair), ensure_ascii=False) + "\n")
        write_text(self.folder / "parts" / f"{shard}.jsonl", lines.getvalue())


def export_shards(config: ExportConfig, *, progress: bool = True) -> dict[str, Any]:
    """Export the kept pictures of a filtered set; returns a summary with the counts of all runs.

    Raises ValueError or FileNotFoundError if the set or its pictures cannot be read, or `out` has other settings.
    """
    data, folder = FilteredSet.open(config.dataset), to_path(config.out)
    images = ShardSet.open(data.images)
    shards = [table.stem for table in data.tables]
    evaluation_pictures = EvaluationPictures(config.decontaminate)
    if config.decontaminate and not len(evaluation_pictures):
        raise ValueError(f"No picture below {', '.join(config.decontaminate)} can be decoded; give other folders.")
    with lock_folder(folder, config.rank, config.world_size):
        manifest = Manifest.begin(
            folder,
            "export",
            {"format": config.format, "decontaminate": config.decontaminate, "licence": config.licence},
            images=images.path,
            parents=[data.folder],
            shared=config.world_size > 1,
        )
        stage = ExportStage(
            images,
            data.folder,
            data.sources,
            data.columns,
            folder,
            config.format,
            evaluation_pictures,
            data.further,
            key_prefixes(shards),
        )
        stage.output(shards[0]).parent.mkdir(parents=True, exist_ok=True)
        own_shards = config.shards_of_rank(shards)
        indexes = {shard: stage.output(shard) for shard in shards}
        remedy = f"delete {folder}, or give another folder"
        require_same_inputs({index: stage.inputs(shard) for shard, index in indexes.items()}, remedy)
        remove_temporary_files(folder, [f"{shard}.{suffix}" for shard in own_shards for suffix in ("tar", "parquet")])
        remove_temporary_files(folder / "parts", [f"{shard}.jsonl" for shard in own_shards])
        result = run_shards(
            stage, own_shards, workers=config.workers, device="cpu", engine=config.engine, progress=progress
        )
        counts = manifest.record_run(indexes, own_shards, result.failed, changed=result.done > 0)
        if len(existing_paths(indexes.values())) == len(shards):
            _finish(config, data, folder, indexes, counts)
    return {
        "stage": "export",
        "out": str(folder),
        "shards": {"done": result.done, "skipped": result.skipped, "failed": result.failed},
        "counts": counts,
        "seconds": round(result.seconds, 2),
    }


def _finish(
    config: ExportConfig, data: FilteredSet, folder: AnyPath, indexes: dict[str, AnyPath], counts: dict[str, int]
) -> None:
    """Write the files that describe a complete export."""
    if config.format == "json":
        _join_lists(folder, list(indexes))
    if config.format == "webdataset":
        # open_clip reads the number of pictures from here if --train-num-samples is not given.
        shard_counts = zip(indexes, read_footer_counts(indexes.values()), strict=True)
        sizes = {f"{shard}.tar": counts_of_shard[EXPORTED] for shard, counts_of_shard in shard_counts}
        write_json(folder / "sizes.json", sizes)
    write_text(folder / "README.md", dataset_card(data, config.format, counts, config.decontaminate, config.licence))


def _join_lists(folder: AnyPath, shards: list[str]) -> None:
    """Join the shards' parts to the JSON list pairs.json, with one part in memory."""
    with atomic_write(folder / "pairs.json") as file:
        separator = b"[\n"
        for shard in shards:
            for line in (folder / "parts" / f"{shard}.jsonl").read_bytes().splitlines():
                file.write(separator + line)
                separator = b",\n"
        file.write(b"\n]\n" if separator != b"[\n" else b"[]\n")
