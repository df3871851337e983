"""Stage 1 for existing pictures: packs them into shards like those of `download`.

The input is one of:

    a folder of pictures, with name.txt beside name.jpg or an annotation file
    an annotation file: csv, tsv, json, jsonl or Parquet with a column of paths; COCO's JSON; BLIP's JSON
    Parquet with image bytes: img2dataset's `jpg` column, Hugging Face's {bytes, path}
    a dataset saved by Hugging Face `datasets`
    another webdataset

`inputs/` finds the bytes and texts of each picture, `shard_writer.py` writes the shards. Every picture gets a row
with an outcome. Its first text is its web text; the others are captions of the source `more`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from blipcore.device import count_cores
from blipcore.io.config_diff import INCIDENTAL
from blipcore.io.messages import one_line
from blipcore.io.storage import AnyPath, to_path
from capfilt.engine.run import run_shards
from capfilt.ingest.account import record_account
from capfilt.ingest.duplicates import mark_duplicates, marked_kind
from capfilt.ingest.inputs.input import InputOptions, InputRow
from capfilt.ingest.inputs.open import open_input
from capfilt.ingest.keep_columns import FurtherColumns
from capfilt.ingest.lists.list_files import split_names
from capfilt.ingest.lists.rows import as_text
from capfilt.ingest.open_set import InputRows, manifest_settings, open_set
from capfilt.ingest.plans import PLAN_SCHEMA, ROWS_FOLDER, filled_cells
from capfilt.ingest.shard_writer import OUTCOMES, ShardWriter, open_folders
from capfilt.pictures.decode import MAX_PIXELS
from capfilt.shards.manifest import read_manifest, remove_manifest_if_empty
from capfilt.shards.tables import read_table

ROWS_PER_PROCESS = 200  # fewer are not worth starting a process, which takes a second


@dataclass
class PackConfig:
    """Settings of `capfilt pack`. The content of the input is identified by its fingerprint, not by its path."""

    source: str = field(metadata=INCIDENTAL)  # folder, annotation file, Parquet, saved dataset, tar or folder of tars
    out: str = field(metadata=INCIDENTAL)  # folder, or an fsspec URL
    # file that names the pictures under `source` and their texts
    annotations: str | None = field(default=None, metadata=INCIDENTAL)
    kind: str | None = field(default=None, metadata=INCIDENTAL)  # one of input.KINDS; default: detected
    split: str | None = None  # several joined by "+", or "all"
    image_col: str | None = None  # of paths or of bytes; default: one of the usual names
    # columns, suffixes of text files or JSON keys, the web text first; default: the usual ones; ["none"] for no texts
    caption_col: list[str] = field(default_factory=list)
    encoding: str | None = None  # of texts that are not UTF-8
    no_header: bool = False  # an annotation list has no header
    columns: str = ""  # names of the columns of an annotation list without a header, joined by commas
    quoting: Literal["", "none", "double", "backslash"] = ""  # of an annotation list in csv or tsv; default: detected
    # further columns of the input that the shards keep; default: all; ["none"] for none
    keep_columns: list[str] = field(default_factory=list)
    shard_size: int = 10_000  # rows per shard
    image_size: int = 512  # longer side at most, larger pictures are shrunk; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 200_000_000  # of a picture's file
    max_pixels: int = MAX_PIXELS  # of a picture; 120_000_000 admits those of a phone with 108 megapixels
    quality: int = 95  # of pictures that are stored as a new JPEG
    # mark duplicate pictures in DATA/duplicates
    duplicates: Literal["", "exact", "near"] = field(default="", metadata=INCIDENTAL)
    workers: int = field(default=0, metadata=INCIDENTAL)  # processes; 0 means one per core
    min_success: float = field(default=0.2, metadata=INCIDENTAL)  # share of rows that must be ok for exit code 0

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, not {self.shard_size}.")
        if not 0 <= self.min_success <= 1:
            raise ValueError(f"min_success is a share between 0 and 1, not {self.min_success}.")

    def input_options(self) -> InputOptions:
        """Return how to read the input."""
        return InputOptions(
            self.annotations,
            self.kind,
            self.split,
            self.image_col,
            tuple(self.caption_col),
            self.encoding,
            self.no_header,
            split_names(self.columns),
            self.quoting,
        )


def pack(config: PackConfig, progress: bool = True) -> dict[str, Any]:
    """Pack pictures into shards; return the counts by outcome over the whole set. Resumes an earlier run."""
    source = open_input(config.source, config.input_options())
    settings = {"kind": source.kind} | manifest_settings(config)
    rows = InputRows(
        config.source,
        (_plan_row(row, config.keep_columns) for row in source),
        source.fingerprint,
        PLAN_SCHEMA,
        FurtherColumns(config.keep_columns, source.further),
        check=isinstance(to_path(config.source), Path),  # a remote input is known by its listing
    )
    with open_folders(config.out) as (out, staging):
        is_new = read_manifest(out) is None
        try:
            data = open_set(out, staging, "pack", settings, ["pillow", "pyarrow", "webdataset"], rows)
            if not data.shards:
                raise ValueError(f"{config.source} holds no pictures.")
        except ValueError:
            if is_new:
                shutil.rmtree(staging, ignore_errors=True)
                rows.discard(out)
                remove_manifest_if_empty(out)
            raise
        account = record_account(data.manifest, source.account if source.is_read else None, progress)
        stage = ShardWriter(
            str(staging / ROWS_FOLDER),
            str(out),
            config.image_size,
            config.min_size,
            config.max_bytes,
            config.quality,
            config.max_pixels,
            captions=str(data.captions.folder) if data.captions else None,
            further=data.split.further,
            name="pack",
        )
        tables = {shard: stage.output(shard) for shard in data.shards}
        workers = max(1, min(config.workers or count_cores(), data.split.rows // ROWS_PER_PROCESS))
        run = run_shards(stage, tables, workers=workers, device="cpu", progress=progress)
        if not run.failed:  # before the set's own counts, which mean that nothing is left to do
            data.finish_captions()
        counts = data.manifest.record_run(tables, tables, run.failed, changed=run.done > 0)
        if not run.failed:
            shutil.rmtree(staging, ignore_errors=True)
        complete = [shard for shard in tables if shard not in run.failed]
        duplicate_kind = config.duplicates or (marked_kind(out) if run.done else "")
        duplicates = mark_duplicates(out, complete, duplicate_kind) if duplicate_kind else {}
        failures = {outcome for outcome in OUTCOMES if counts.get(outcome)} - {"ok"}
        examples = _find_examples([tables[shard] for shard in complete], failures)
    ok, total = counts.get("ok", 0), counts.get("rows", 0)
    return {
        "stage": "pack",
        "out": str(out),
        "kind": source.kind,
        "account": account,
        "rows": total,
        "ok": ok,
        "success": round(ok / max(1, total), 4),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES if outcome in counts},
        "for_example": examples,
        "ignored": dict(source.ignored),
        "shards": {"done": run.done, "skipped": run.skipped, "failed": run.failed},
        "duplicates": duplicates,
        "seconds": round(run.seconds, 1),
    }


def _plan_row(row: InputRow, keep_columns: list[str]) -> InputRow:
    texts = [text for text in row.pop("texts") if text is not None]
    more_columns = [filled_cells(columns, keep_columns) for columns in (row.pop("text_columns", None) or ())[1:]]
    return {
        **row,
        "url": as_text(row["url"]),  # file names need not be valid text
        "status": row.get("status", "ok"),
        "caption": texts[0] if texts else None,
        "more": texts[1:],
        "more_columns": more_columns if any(more_columns) else None,
    }


def _find_examples(tables: list[AnyPath], outcomes: set[str]) -> dict[str, str]:
    """Return per outcome the first picture with it and the reason; read only the tables needed for that."""
    examples: dict[str, str] = {}
    for path in tables:
        if outcomes <= examples.keys():
            break
        table = read_table(path, ["url", "status", "error"])
        for row in table.filter(pc.not_equal(table["status"], "ok")).to_pylist():
            examples.setdefault(row["status"], f"{row['url']} ({one_line(str(row['error']))[:160]})")
    return examples
