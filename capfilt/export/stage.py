"""Kept pairs -> files that other trainers read as they are: step 4b, beside the rewritten shards.

    webdataset   NNNNN.tar      key.jpg, key.txt and key.json: what open_clip and img2dataset's users train on
    parquet      NNNNN.parquet  pictures inside, features declared: for `datasets.load_dataset` and the hub's viewer
    json         images/NNNNN/KEY.jpg and pairs.json: BLIP's own lists, one row a text

A picture goes out once, with the texts that were kept: `text` is the one that the filter likes best, `caption_<source>`
the best of each source. With `decontaminate`, pictures that look like one of an evaluation set stay behind.
`.index/NNNNN.parquet` says of every picture with a kept text what became of it, and a README.md beside the files is a
data set card: counts, models, thresholds, what was left out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Literal
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.samples import Picture, read_pictures
from blipcore.io.storage import AnyPath, existing, to_path
from blipcore.io.writing import atomic_write, remove_temporary_files
from capfilt.engine import run as engine
from capfilt.export.card import card
from capfilt.export.decontaminate import Forbidden
from capfilt.filter.filtered_set import Dataset
from capfilt.shards.format import suffix_of, write_json, write_shard, write_text
from capfilt.shards.lock import lock_folder
from capfilt.shards.manifest import Manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import counts_of_each, read_table, write_table

Format = Literal["webdataset", "parquet", "json"]
EXPORTED, CONTAMINATED, MISSING = "exported", "contaminated", "missing"
INDEX = pa.schema([("key", pa.string()), ("outcome", pa.string()), ("texts", pa.int32())])
Pair = tuple[Picture, list[dict[str, Any]]]  # a picture and its kept texts, the best first
VIEWER_ROWS = 100  # of a Parquet row group: the hub's viewer reads whole groups, pictures and all


@dataclass
class ExportConfig(engine.EngineConfig):
    """`capfilt export`."""

    dataset: str  # a filtered folder
    out: str
    format: Format = "webdataset"
    decontaminate: list[str] = field(default_factory=list)  # folders of pictures that no training set may hold
    licence: str | None = None  # for the card: the texts' and pictures' own, which only you can know


@dataclass
class ExportStage:
    """Writes the kept pairs of one shard."""

    images: ShardSet
    filtered: AnyPath
    sources: list[str]
    scores: list[str]
    folder: AnyPath
    format: Format
    forbidden: Forbidden
    name: str = "export"

    def output(self, shard: str) -> AnyPath:
        return self.folder / ".index" / f"{shard}.parquet"  # written last; hidden, `datasets` passes it by

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def run(self, shard: str) -> dict[str, int]:
        index: dict[str, tuple[str, int]] = {}
        write = {"webdataset": self._webdataset, "parquet": self._parquet, "json": self._json}[self.format]
        write(shard, self._pictures(shard, index))
        rows = [(key, outcome, texts) for key, (outcome, texts) in index.items()]
        counts = {outcome: sum(row[1] == outcome for row in rows) for outcome in (EXPORTED, CONTAMINATED, MISSING)}
        counts["texts"] = sum(texts for _, outcome, texts in rows if outcome == EXPORTED)
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        write_table(self.output(shard), pa.table(columns, schema=INDEX), counts)
        return counts

    def _pictures(self, shard: str, index: dict[str, tuple[str, int]]) -> Iterator[Pair]:
        """Each picture that goes out with its kept texts, the best first; `index` takes every picture's outcome."""
        columns = ["key", "source", "index", "text", *self.scores, "keep", "url", "sha256"]
        table = read_table(self.filtered / f"{shard}.parquet", columns)
        kept: dict[str, list[dict[str, Any]]] = {}
        for row in table.filter(table["keep"]).drop_columns(["keep"]).to_pylist():
            kept.setdefault(row.pop("key"), []).append(row)
        for key, texts in kept.items():
            texts.sort(key=lambda row: -(row[self.scores[0]] or 0.0))
            index[key] = (MISSING, len(texts))
        for picture in read_pictures(self.images.tar(shard), keys=kept):
            if picture.error is None and index[picture.key][0] == MISSING:
                forbidden = picture.image in self.forbidden
                index[picture.key] = (CONTAMINATED if forbidden else EXPORTED, len(kept[picture.key]))
                if not forbidden:
                    yield picture, kept[picture.key]

    def _row(self, texts: list[dict[str, Any]]) -> dict[str, Any]:
        """All that is told of a picture beside its pixels."""
        best = {source: next((row for row in texts if row["source"] == source), None) for source in self.sources}
        row: dict[str, Any] = {"text": texts[0]["text"], "source": texts[0]["source"]}
        for source, found in best.items():
            row[f"caption_{source}"] = found and found["text"]
            row |= {f"{score}_{source}": found and found[score] for score in self.scores}
        return row | {"url": texts[0]["url"], "sha256": texts[0]["sha256"]}

    def _webdataset(self, shard: str, pictures: Iterator[Pair]) -> None:
        write_shard(
            self.folder / f"{shard}.tar",
            (Picture(_key(shard, p), p.image, texts[0]["text"], self._row(texts)) for p, texts in pictures),
        )

    def _parquet(self, shard: str, pictures: Iterator[Pair]) -> None:
        schema = self._schema()
        with (
            atomic_write(self.folder / f"{shard}.parquet") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            rows: list[dict[str, Any]] = []
            for picture, texts in pictures:
                name = _key(shard, picture)
                image = {"bytes": picture.image, "path": f"{name}.{suffix_of(picture.image)}"}
                rows.append({"image": image, "key": name, **self._row(texts)})
                if len(rows) == VIEWER_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema))

    def _schema(self) -> pa.Schema:
        """Columns of the Parquet files, with the features that `datasets` reads from their footers."""
        columns = {"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "key": pa.string()}
        columns |= {"text": pa.string(), "source": pa.string()}
        for source in self.sources:
            columns[f"caption_{source}"] = pa.string()
            columns |= {f"{score}_{source}": pa.float32() for score in self.scores}
        columns |= {"url": pa.string(), "sha256": pa.string()}
        features: dict[str, dict[str, str]] = {
            name: {"dtype": "float32" if kind == pa.float32() else "string", "_type": "Value"}
            for name, kind in columns.items()
        }
        features["image"] = {"_type": "Image"}
        return pa.schema(columns.items(), metadata={"huggingface": json.dumps({"info": {"features": features}})})

    def _json(self, shard: str, pictures: Iterator[Pair]) -> None:
        lines, folders, taken = io.StringIO(), set[AnyPath](), set[str]()
        for picture, texts in pictures:
            name = _free(f"images/{shard}/{picture.key}", f".{suffix_of(picture.image)}", taken)
            path = self.folder / name
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                remove_temporary_files(path.parent)  # of what a killed run has left
                folders.add(path.parent)
            with atomic_write(path) as file:
                file.write(picture.image)
            for row in texts:
                pair = {"image": name, "caption": row["text"], "image_id": _key(shard, picture), **row}
                lines.write(json.dumps(pair, ensure_ascii=False) + "\n")
        write_text(self.folder / "parts" / f"{shard}.jsonl", lines.getvalue())


def export(config: ExportConfig, *, progress: bool = True) -> dict[str, Any]:
    """Export what `config.dataset` keeps; the summary counts all shards, also those of earlier runs.

    Raises ValueError or FileNotFoundError, one sentence, for a folder that `capfilt filter` has not made or finished,
    pictures that have been moved, or an `out` made with other settings.
    """
    data, folder = Dataset.open(config.dataset), to_path(config.out)
    images = ShardSet.open(data.images)
    shards = [table.stem for table in data.tables]
    forbidden = Forbidden(config.decontaminate)
    if config.decontaminate and not len(forbidden):
        raise ValueError(f"No picture could be read below {', '.join(config.decontaminate)}: nothing to compare with.")
    with lock_folder(folder, config.rank, config.world_size):
        manifest = Manifest.begin(
            folder,
            "export",
            {"format": config.format, "decontaminate": config.decontaminate, "licence": config.licence},
            images=images.path,
            parents=[data.folder],
            shared=config.world_size > 1,
        )
        stage = ExportStage(images, data.folder, data.sources, data.columns, folder, config.format, forbidden)
        mine = config.share(shards)
        remove_temporary_files(folder, [f"{shard}.{end}" for shard in mine for end in ("tar", "parquet")])
        remove_temporary_files(folder / "parts", [f"{shard}.jsonl" for shard in mine])
        ran = engine.run(stage, mine, workers=config.workers, device="cpu", engine=config.engine, progress=progress)
        counts = manifest.settle({s: stage.output(s) for s in shards}, mine, ran.failed, changed=ran.done > 0)
        whole = len(existing(stage.output(shard) for shard in shards)) == len(shards)
        if whole and config.format == "json":
            _join_lists(folder, shards)
        if whole and config.format == "webdataset":  # what open_clip asks for where it is not told the number
            counted = zip(shards, counts_of_each(stage.output(shard) for shard in shards), strict=True)
            write_json(folder / "sizes.json", {f"{shard}.tar": own[EXPORTED] for shard, own in counted})
        if whole:
            write_text(folder / "README.md", card(data, config.format, counts, config.decontaminate, config.licence))
    return {
        "stage": "export",
        "out": str(folder),
        "shards": {"done": ran.done, "skipped": ran.skipped, "failed": ran.failed},
        "counts": counts,
        "seconds": round(ran.seconds, 2),
    }


def _key(shard: str, picture: Picture) -> str:
    """A key that no other shard has; to webdataset it would end at a dot, which the name of a tar may have."""
    return f"{shard.replace('.', '_')}_{picture.key}"


def _free(stem: str, suffix: str, taken: set[str]) -> str:
    """The file's name, numbered where a file system that takes A for a has it already; notes it in `taken`."""
    names = (f"{stem}{more}{suffix}" for more in chain([""], (f"-{number}" for number in count(2))))
    name = next(name for name in names if normalize("NFC", name.casefold()) not in taken)
    taken.add(normalize("NFC", name.casefold()))
    return name


def _join_lists(folder: AnyPath, shards: list[str]) -> None:
    """`pairs.json`, one JSON list of the parts, a line a pair; never more than a part in memory."""
    with atomic_write(folder / "pairs.json") as file:
        before = b"[\n"
        for shard in shards:
            for line in (folder / "parts" / f"{shard}.jsonl").read_bytes().splitlines():
                file.write(before + line)
                before = b",\n"
        file.write(b"\n]\n" if before != b"[\n" else b"[]\n")
