"""Begins, resumes or extends a shard set, for `download` and `pack`.

A run with the same settings and the same input resumes. An input that has grown, whose earlier rows are unchanged and
in the same order, extends a complete set: its new rows become new shards. Any other change is refused.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blipcore.io.config_diff import incidental_fields
from blipcore.io.storage import AnyPath
from capfilt.config import to_dict
from capfilt.ingest.input_record import InputRecord
from capfilt.ingest.keep_columns import NONE, FurtherColumns
from capfilt.ingest.plans import COUNT_FILE, ROWS_FOLDER, SplitInput, group_by_url, split_rows
from capfilt.ingest.shard_writer import MORE_CAPTIONS, TABLES_GLOB, open_manifest, open_more_captions
from capfilt.shards.format import CAPTIONS
from capfilt.shards.further_columns import further_schema, unify_types
from capfilt.shards.manifest import Manifest, count_shards, read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, write_table

# Settings that older manifests lack; they are recorded only with another value than the default.
NEWER = ("keep_columns", "max_pixels", "no_header", "columns", "quoting", "encoding", "split")


@dataclass
class InputRows:
    """The rows of an input, read once: plan rows, with "columns"."""

    name: str  # for messages
    rows: Iterator[dict[str, Any]]
    fingerprint: str  # of its content
    schema: pa.Schema  # of the plan
    further: FurtherColumns
    by_url: bool = False  # consecutive rows with the same URL are one picture
    check: bool = False  # compare the rows even if the fingerprint is the same

    def discard(self, out: AnyPath) -> None:
        """Remove the record of an input without rows."""
        InputRecord(out, self.fingerprint).path.unlink(missing_ok=True)


@dataclass
class OpenSet:
    """A shard set ready to be written."""

    manifest: Manifest
    split: SplitInput
    captions: Manifest | None  # of the texts after the first of a picture
    shards: list[str]

    def finish_captions(self) -> None:
        """Record the number of captions, once all shards are written."""
        if self.captions is not None:
            tables = [self.captions.folder / f"{shard}.parquet" for shard in self.shards]
            number = sum(len(read_table(table, ["key"])) for table in tables) if self.split.first_shard else None
            self.captions.finish({"captions": self.split.more if number is None else number})


def manifest_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a DownloadConfig or PackConfig for the manifest, in the form of older manifests."""
    settings = to_dict(config, without=incidental_fields(config), unless_default=NEWER)
    if len(config.caption_col) < 2:
        settings["caption_col"] = config.caption_col[0] if config.caption_col else None
    return settings


def open_set(
    out: AnyPath, staging: Path, stage: str, settings: dict[str, Any], packages: Iterable[str], source: InputRows
) -> OpenSet:
    """Begin, resume or extend a set; split the input into plans if it is not split yet.

    Raises ValueError if the settings or the input have changed in another way.
    """
    settings = {"input_sha256": source.fingerprint} | settings
    recorded = read_manifest(out)
    earlier = _earlier_rows(out, recorded, settings)
    if recorded is not None and earlier is not None:
        split = _extend(out, staging, recorded, earlier, source, settings["shard_size"])
        manifest = Manifest(out, read_manifest(out) or recorded)
    else:
        manifest = open_manifest(out, staging, stage, settings, packages)
        split = _split(out, staging, manifest, source, settings["shard_size"])
    shards = [f"{number:05d}" for number in range(split.first_shard + -(-split.rows // settings["shard_size"]))]
    return OpenSet(manifest, split, _open_captions(out, split, source.fingerprint, shards), shards)


def _earlier_rows(out: AnyPath, recorded: dict[str, Any] | None, settings: dict[str, Any]) -> np.ndarray | None:
    """Return the digests of the rows of a complete set that differs from `settings` in its input only, or None."""
    if recorded is None or "counts" not in recorded or recorded["config"].get("input_sha256") is None:
        return None
    fingerprint = recorded["config"]["input_sha256"]
    others = [{**config, "input_sha256": None} for config in (recorded["config"], settings)]
    if fingerprint == settings["input_sha256"] or others[0] != others[1]:
        return None
    if sum(1 for _ in out.glob(TABLES_GLOB)) < count_shards(recorded):
        return None
    return InputRecord(out, fingerprint).read()


def _extend(
    out: AnyPath,
    staging: Path,
    recorded: dict[str, Any],
    earlier: np.ndarray,
    source: InputRows,
    shard_size: int,
) -> SplitInput:
    """Split the new rows of a grown input; raise ValueError if an earlier row has changed."""
    record, first_shard = InputRecord(out, source.fingerprint), count_shards(recorded)
    shutil.rmtree(staging, ignore_errors=True)
    rows = group_by_url(source.rows, source.further.keep) if source.by_url else source.rows
    split = split_rows(
        staging, record.find_new(rows, earlier), source.schema, shard_size, source.further, first_shard=first_shard
    )
    if record.matched < len(earlier):
        shutil.rmtree(staging, ignore_errors=True)
        raise ValueError(_describe_change(out, source, record, len(earlier)))
    if not split.rows:  # other bytes, such as another compression, and the same rows
        shutil.rmtree(staging, ignore_errors=True)
        return SplitInput(0, first_shard=first_shard)
    try:
        _require_columns(split.further, further_schema(ShardSet.open(out)))
    except ValueError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    record.write()
    growth = f"{source.name} has grown by {split.rows:,} rows; they become shards from {first_shard:05d} on."
    print(growth, file=sys.stderr)
    old = recorded["config"]["input_sha256"]
    Manifest(out, recorded).extend(source.fingerprint, split.rows)
    InputRecord(out, old).path.unlink(missing_ok=True)
    return split


def _split(out: AnyPath, staging: Path, manifest: Manifest, source: InputRows, shard_size: int) -> SplitInput:
    """Split the input unless an earlier run has; raise ValueError if its rows are not what they were."""
    record = InputRecord(out, source.fingerprint)
    earlier = record.read()
    is_old = "layout" not in manifest.content  # made by a version that recorded no rows
    further = FurtherColumns([NONE]) if is_old else source.further
    rows = group_by_url(source.rows, source.further.keep) if source.by_url and not is_old else source.rows
    has_plans = (staging / ROWS_FOLDER / COUNT_FILE).exists()
    if "counts" in manifest.content or has_plans:
        if earlier is not None and source.check:
            for _ in record.find_new(rows, earlier):
                break
            if record.first_new is not None or record.matched < len(earlier):
                raise ValueError(_describe_change(out, source, record, len(earlier)))
        if "counts" in manifest.content:
            return SplitInput(0, first_shard=count_shards(manifest.content))
        return split_rows(staging, iter(()), source.schema, shard_size, further)
    if "parts" in manifest.content:
        raise ValueError(
            f"{out} was extended, and a shard of it or its staging folder was deleted since; restore it, or delete "
            f"{out} and run again."
        )
    split = split_rows(staging, rows if is_old else record.record(rows), source.schema, shard_size, further)
    if earlier is not None and record.digests.tolist() != earlier.tolist():
        shutil.rmtree(staging, ignore_errors=True)
        raise ValueError(f"{source.name} has changed since {out} was begun; delete {out}, or give another folder.")
    return split


def _describe_change(out: AnyPath, source: InputRows, record: InputRecord, rows: int) -> str:
    if record.first_new is None:
        change = f"it has {record.matched:,} rows, and had {rows:,}"
    else:
        number, url = record.first_new
        change = f"row {number:,} ({url}) is new or has changed, or its file was written since"
    return f"{source.name} is not what {out} was made from: {change}. Give another folder, or delete {out}."


def _require_columns(new: pa.Schema, old: pa.Schema) -> None:
    for field in new:
        if field.name not in old.names:
            columns = ", ".join(old.names) or "none"
            raise ValueError(
                f"The new rows have a column '{field.name}', which the set lacks (it has {columns}); "
                "remove the column, or give another folder."
            )
        recorded = old.field(field.name).type
        if unify_types([recorded, field.type]) != recorded:
            raise ValueError(
                f"The column '{field.name}' of the new rows is of type {field.type}, but {recorded} in the set; "
                "change it, or give another folder."
            )


def _open_captions(out: AnyPath, split: SplitInput, fingerprint: str, shards: list[str]) -> Manifest | None:
    """Begin or continue captions/more, if a picture has more than one text."""
    exists = read_manifest(out / "captions" / MORE_CAPTIONS) is not None
    if not split.more and not (exists and split.rows):
        return None
    captions = open_more_captions(out, fingerprint)
    if not exists:
        for shard in shards[: split.first_shard]:  # of an extended set, whose earlier pictures have one text each
            write_table(captions.folder / f"{shard}.parquet", CAPTIONS.empty_table())
    return captions
