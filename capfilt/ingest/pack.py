"""Stage 1 for those who have their pictures already: whatever they lie in, the same shards come out as of `download`.

    a folder of pictures, with name.txt beside name.jpg or an annotation file
    an annotation file: csv, tsv, json, jsonl, parquet with a column of paths; COCO's JSON; BLIP's JSON
    Parquet with image bytes: img2dataset's `jpg` column, Hugging Face's {bytes, path}
    a dataset saved by Hugging Face `datasets`
    other webdatasets
        -> where the bytes of each picture lie, and its texts -> publish.py

Every picture ends as a row with an outcome, bad ones too. The first text of a picture is its web text; further ones
are captions of the source `more`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.compute as pc

from blipcore.device import count_cores
from blipcore.io.storage import AnyPath
from capfilt.config import to_dict
from capfilt.engine.run import run_shards
from capfilt.ingest.duplicates import mark_duplicates, marked_kind
from capfilt.ingest.input import InputColumns, InputRow, PictureInput
from capfilt.ingest.inputs import open_input
from capfilt.ingest.lists import as_text
from capfilt.ingest.shard_writer import (
    MORE_CAPTIONS,
    OUTCOMES,
    PLAN_SCHEMA,
    ROWS_FOLDER,
    ShardWriter,
    open_manifest,
    open_folders,
    sample_key,
    split_rows,
)
from capfilt.shards.manifest import Manifest, forget_if_empty
from capfilt.shards.tables import read_table


@dataclass
class PackConfig:
    """`capfilt pack`."""

    source: str  # folder, annotation file, Parquet, saved dataset, tar or folder of tars
    out: str  # folder, or an fsspec URL
    annotations: str | None = None  # file that names the pictures under `source` and their texts
    image_col: str | None = None  # of paths or of bytes; found by its usual names
    caption_col: str | None = None
    shard_size: int = 10_000  # rows to a shard
    image_size: int = 512  # longer side at most, larger pictures are shrunk; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 200_000_000  # of a picture's file at most
    quality: int = 95  # of the JPEGs that have to be written anew
    duplicates: Literal["", "exact", "near"] = ""  # mark pictures that are there twice, in DATA/duplicates
    workers: int = 0  # processes; 0 is one a core
    min_success: float = 0.2  # share of rows that must be ok for exit code 0

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, not {self.shard_size}.")
        if not 0 <= self.min_success <= 1:
            raise ValueError(f"min_success is a share between 0 and 1, not {self.min_success}.")


# The source's own fingerprint says what is in it.
WITHOUT_EFFECT = ("source", "out", "annotations", "workers", "min_success", "duplicates")


def pack(config: PackConfig, progress: bool = True) -> dict[str, Any]:
    """Make shards of pictures that are there already; returns counts by outcome over the whole set."""
    source = open_input(config.source, config.annotations, InputColumns(config.image_col, config.caption_col))
    settings = {"kind": source.kind, "input_sha256": source.fingerprint} | to_dict(config, without=WITHOUT_EFFECT)
    with open_folders(config.out) as (out, staging):
        manifest = open_manifest(out, staging, "pack", settings, ["pillow", "pyarrow", "webdataset"])
        if "counts" in manifest.content:
            total, more = manifest.content["counts"]["rows"], 0
        else:
            rows = (_complete(row, number, config) for number, row in enumerate(source))
            total, more = split_rows(staging, rows, PLAN_SCHEMA, config.shard_size)
        if total == 0:
            shutil.rmtree(staging)
            forget_if_empty(out)
            raise ValueError(f"{config.source} holds no pictures.")
        captions = _more_captions(out, source) if more else None
        stage = ShardWriter(
            str(staging / ROWS_FOLDER),
            str(out),
            config.image_size,
            config.min_size,
            config.max_bytes,
            config.quality,
            captions=str(captions.folder) if captions else None,
            name="pack",
        )
        tables = {f"{number:05d}": stage.output(f"{number:05d}") for number in range(-(-total // config.shard_size))}
        workers = max(1, min(config.workers or count_cores(), total // 200))  # a process costs a second to start
        ran = run_shards(stage, tables, workers=workers, device="cpu", progress=progress)
        if captions and not ran.failed:  # before the set itself, whose counts say that nothing is left to do
            captions.finish({"captions": more})
        counts = manifest.settle(tables, tables, ran.failed, changed=ran.done > 0)
        if not ran.failed:
            shutil.rmtree(staging, ignore_errors=True)
        done = [shard for shard in tables if shard not in ran.failed]
        kind = config.duplicates or (marked_kind(out) if ran.done else "")
        duplicates = mark_duplicates(out, done, kind) if kind else {}
        wrong = _examples([tables[shard] for shard in done], {name for name in OUTCOMES if counts.get(name)} - {"ok"})
    ok = counts.get("ok", 0)
    return {
        "stage": "pack",
        "out": str(out),
        "kind": source.kind,
        "rows": total,
        "ok": ok,
        "success": round(ok / total, 4),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES if outcome in counts},
        "for_example": wrong,
        "ignored": dict(source.ignored),
        "shards": {"done": ran.done, "skipped": ran.skipped, "failed": ran.failed},
        "duplicates": duplicates,
        "seconds": round(ran.seconds, 1),
    }


def _complete(row: InputRow, number: int, config: PackConfig) -> InputRow:
    texts = [text for text in row.pop("texts") if text is not None]
    return {
        **row,
        "url": as_text(row["url"]),  # of a name that need not be text
        "key": sample_key(number, config.shard_size),
        "status": row.get("status", "ok"),
        "caption": texts[0] if texts else None,
        "more": texts[1:],
    }


def _examples(tables: list[AnyPath], outcomes: set[str]) -> dict[str, str]:
    """Outcome -> the first picture that ended so, and why; reads no more tables than it takes to find one of each."""
    found: dict[str, str] = {}
    for path in tables:
        if outcomes <= found.keys():
            break
        table = read_table(path, ["url", "status", "error"])
        for row in table.filter(pc.not_equal(table["status"], "ok")).to_pylist():
            found.setdefault(row["status"], f"{row['url']} ({' '.join(str(row['error']).split())[:160]})")
    return found


def _more_captions(out: AnyPath, source: PictureInput) -> Manifest:
    folder = out / "captions" / MORE_CAPTIONS
    return Manifest.begin(folder, "caption", {"input_sha256": source.fingerprint}, images=out)
