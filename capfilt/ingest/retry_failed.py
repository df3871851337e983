"""`capfilt download --retry-failed`: fetches the temporary failures of complete shards again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, list_names
from blipcore.io.tars import walk_tar
from blipcore.io.writing import atomic_write
from capfilt.ingest.download_config import DownloadConfig
from capfilt.ingest.fetch.attempts import RETRYABLE, Attempts, FetchResult
from capfilt.ingest.plans import group_by_url, plan_schema
from capfilt.ingest.rounds import ROWS_PER_ROUND, fetch_urls, make_writer, plan_columns, remove_results, write_shards
from capfilt.ingest.shard_writer import MORE_CAPTIONS
from capfilt.shards.further_columns import own_table_columns
from capfilt.shards.manifest import Manifest, read_manifest
from capfilt.shards.tables import read_table, write_table

RETRY_FOLDER = "again"  # subfolder of the staging folder for --retry-failed


def require_no_derived_tables(out: AnyPath) -> None:
    """Raise ValueError if captions, scores or filtered sets were made from these shards."""
    for stage in ("captions", "scores", "filtered"):
        for folder in (out / stage / name for name in list_names(out / stage)):
            if folder.name != MORE_CAPTIONS and any(name.endswith(".parquet") for name in list_names(folder)):
                raise ValueError(
                    f"{folder} was made from these shards, which --retry-failed would change; delete it first, or "
                    "download the failed rows as a separate list."
                )


def retry_failed_rows(
    out: AnyPath,
    staging: Path,
    shards: list[str],
    manifest: Manifest,
    rows: Iterator[dict[str, Any]],
    config: DownloadConfig,
    progress: bool,
) -> dict[str, str]:
    """Retry the temporary failures of complete shards and replace the shards; return those that failed.

    `rows` are those of the list, which has the further texts and the checksums of the failed rows.
    """
    failed: dict[str, str] = {}
    folder = staging / RETRY_FOLDER
    has_captions = read_manifest(out / "captions" / MORE_CAPTIONS) is not None
    of_list = _find_rows(out, shards, rows, config.keep_columns)
    per_round = max(1, ROWS_PER_ROUND // config.shard_size)
    for first in range(0, len(shards), per_round):
        part = shards[first : first + per_round]
        tables = {shard: read_table(out / f"{shard}.parquet") for shard in part}
        urls = {
            int(shard) * config.shard_size + index: row["url"]
            for shard, table in tables.items()
            for index, row in enumerate(table.select(["url", "status"]).to_pylist())
            if row["status"] in RETRYABLE
        }
        if not urls:
            continue
        results = fetch_urls(Attempts(folder / "fetched"), urls, len(part), config, progress)
        changed = [f"{number:05d}" for number in sorted({row // config.shard_size for row in urls})]
        for shard in changed:
            plan = _make_retry_plan(out, tables[shard], shard, results, of_list, config)
            write_table(folder / "plan" / f"{shard}.parquet", plan)
        manifest.drop_counts()
        further = pa.schema(own_table_columns(tables[changed[0]].schema))
        captions = folder / "captions" if has_captions else None
        if captions is not None:
            captions.mkdir(parents=True, exist_ok=True)
        stage = make_writer(folder, folder / "plan", config, further, captions)
        newly_failed = write_shards(stage, changed, len(results), config, progress)
        failed |= newly_failed
        if not newly_failed:
            replace_shards(out, staging)
            remove_results(folder)
    return failed


def _find_rows(
    out: AnyPath, shards: list[str], rows: Iterator[dict[str, Any]], keep_columns: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the rows of the list whose fetching has failed temporarily, by their URLs."""
    wanted: set[str] = set()
    for shard in shards:
        table = read_table(out / f"{shard}.parquet", ["url", "status"])
        wanted.update(table.filter(pc.is_in(table["status"], pa.array(RETRYABLE)))["url"].to_pylist())
    found: dict[str, dict[str, Any]] = {}
    for row in group_by_url(rows, keep_columns) if wanted else ():
        if row["url"] in wanted:
            found.setdefault(row["url"], row)
    return found


def _read_more(out: AnyPath, shard: str) -> dict[str, dict[str, list[str | None]]]:
    """Return the texts after the first of each picture of a shard, as columns of a plan."""
    more: dict[str, dict[str, list[str | None]]] = {}
    try:
        table = read_table(out / "captions" / MORE_CAPTIONS / f"{shard}.parquet", ["key", "text"], ["columns"])
    except FileNotFoundError:
        return {}
    for row in table.to_pylist():
        of_picture = more.setdefault(row["key"], {"more": [], "more_columns": []})
        of_picture["more"].append(row["text"])
        of_picture["more_columns"].append(row.get("columns"))
    return more


def _make_retry_plan(
    out: AnyPath,
    table: pa.Table,
    shard: str,
    results: dict[int, FetchResult],
    of_list: dict[str, dict[str, Any]],
    config: DownloadConfig,
) -> pa.Table:
    """Return the plan of a complete shard with new results for some rows; its other pictures are in its tar."""
    more = _read_more(out, shard)
    tar = out / f"{shard}.tar"
    with open_read(tar) as file:
        members = {member.name: member for member in walk_tar(file, [])}
    plan = []
    for number, row in enumerate(table.to_pylist(), int(shard) * config.shard_size):
        if number in results:
            row |= plan_columns(results[number])
            listed = of_list.get(row["url"], {})
            if listed.get("caption") == row["caption"]:
                row |= {name: listed.get(name) for name in ("more", "more_columns", "checksum")}
        elif row["status"] == "ok":
            member = members.get(f"{row['key']}.jpg")
            if member is None:
                raise ValueError(
                    f"{tar} is damaged; remove it and its table, and run the command without --retry-failed."
                )
            row |= {"body": os.fsencode(str(tar)), "offset": member.offset, "size": member.size}
            row |= more.get(row["key"], {})
        plan.append(row)
    return pa.Table.from_pylist(plan, schema=plan_schema(own_table_columns(table.schema)))


def replace_shards(out: AnyPath, staging: Path) -> None:
    """Replace shards by those written in the retry folder. After a kill, the shard has no table and is incomplete."""
    for table in sorted((staging / RETRY_FOLDER).glob("*.parquet")):
        (out / table.name).unlink(missing_ok=True)
        tar = table.with_suffix(".tar")
        if tar.exists():  # otherwise an earlier run has moved it
            _move(tar, out / tar.name)
        captions = table.parent / "captions" / table.name
        if captions.exists():
            _move(captions, out / "captions" / MORE_CAPTIONS / table.name)
        _move(table, out / table.name)


def _move(source: Path, target: AnyPath) -> None:
    if isinstance(target, Path):
        os.replace(source, target)
        return
    with open(source, "rb") as source_file, atomic_write(target) as target_file:
        shutil.copyfileobj(source_file, target_file)
    source.unlink()
