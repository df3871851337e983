"""Downloads shards in rounds: fetches the URLs of some shards, then writes these shards."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from blipcore.device import count_cores
from blipcore.io.storage import AnyPath
from capfilt.engine.run import run_shards
from capfilt.errors import EngineError
from capfilt.ingest.download_config import DownloadConfig
from capfilt.ingest.fetch.attempts import Attempts, FetchPolicy, FetchResult
from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import FetchLimits
from capfilt.ingest.lists.urls import check_url
from capfilt.ingest.open_set import OpenSet
from capfilt.ingest.plans import PLAN_SCHEMA, ROWS_FOLDER, plan_schema, read_part, sample_key
from capfilt.ingest.shard_writer import ShardWriter
from capfilt.shards.tables import write_table

ROWS_PER_ROUND = 200_000  # fetched before their shards are written; bounds the size of the staging folder
FIRST_ROUND_ROWS = 20_000  # the outcomes of these decide whether the run continues
ROWS_PER_PROCESS = 500  # fewer are not worth starting a process, which takes a second


def download_shards(
    out: AnyPath,
    staging: Path,
    pending: list[str],
    data: OpenSet,
    config: DownloadConfig,
    progress: bool,
) -> tuple[dict[str, str], str | None]:
    """Fetch and write these shards; return those that failed with the reason, and the reason of an early stop."""
    failed: dict[str, str] = {}
    per_round = max(1, ROWS_PER_ROUND // config.shard_size)
    first = max(2, FIRST_ROUND_ROWS // config.shard_size)
    rest = pending[first:]
    rounds = [pending[:first], *(rest[n : n + per_round] for n in range(0, len(rest), per_round))]
    for shards in rounds if pending else []:
        tables = {shard: read_part(staging / ROWS_FOLDER / f"{shard}.parquet", data.split.further) for shard in shards}
        urls = {
            int(shard) * config.shard_size + index: url
            for shard, table in tables.items()
            for index, (url, status) in enumerate(zip(table["url"].to_pylist(), _statuses(table), strict=True))
            if status is None
        }
        attempts = Attempts(staging / "fetched")
        results = fetch_urls(attempts, urls, len(shards), config, progress)
        if not (staging / ROWS_FOLDER).exists():  # writing would create the folder again, with some of the shards
            raise EngineError(f"{staging} was removed while download was writing to it; run the command again.")
        for shard, table in tables.items():
            write_table(staging / "plan" / f"{shard}.parquet", _make_plan(table, shard, results, config))
        stage = make_writer(
            out, staging / "plan", config, data.split.further, data.captions.folder if data.captions else None
        )
        newly_failed = write_shards(stage, shards, len(results), config, progress)
        failed |= newly_failed
        if not newly_failed:
            remove_results(attempts.folder)
        ok = sum(result.status == "ok" for result in results.values())
        if shards is rounds[0] and rest and ok < config.stop_below * len(results):
            problem = f"only {ok} of the first {len(results)} rows could be fetched: {_common_failures(results)}."
            return failed, f"{problem} Run the command again to continue, with --retry-failed to retry these rows too."
    return failed, None


def remove_results(folder: Path) -> None:
    """Remove the results of attempts. They are renamed first, so that a kill leaves all or none."""
    renamed = folder.with_name(f"gone-{folder.name}")
    shutil.rmtree(renamed, ignore_errors=True)
    folder.rename(renamed)
    shutil.rmtree(renamed)


def make_writer(
    out: AnyPath, plans: Path, config: DownloadConfig, further: pa.Schema, captions: AnyPath | None
) -> ShardWriter:
    """Return the stage that writes shards from `plans`, with the settings of a download."""
    return ShardWriter(
        str(plans),
        str(out),
        config.image_size,
        config.min_size,
        config.max_bytes,
        config.quality,
        config.max_pixels,
        captions=str(captions) if captions else None,
        further=further,
    )


def write_shards(
    stage: ShardWriter, shards: list[str], rows: int, config: DownloadConfig, progress: bool
) -> dict[str, str]:
    """Write shards with a process per ROWS_PER_PROCESS rows; return those that failed, with the reason."""
    workers = max(1, min(config.workers or count_cores(), rows // ROWS_PER_PROCESS))
    return run_shards(stage, shards, workers=workers, device="cpu", progress=progress).failed


def fetch_urls(
    attempts: Attempts, urls: dict[int, str | None], shards: int, config: DownloadConfig, progress: bool
) -> dict[int, FetchResult]:
    """Return a result for every URL, by its row in the input; invalid URLs are not requested."""
    encoded: dict[int, str] = {}
    refused: dict[int, FetchResult] = {}
    for row, url in urls.items():
        try:
            encoded[row] = check_url(url, config.allow_private)
        except ValueError as error:
            refused[row] = FetchResult("bad_url", str(error))
    limits = FetchLimits(config.max_bytes, config.picture_seconds, config.allow_private)
    policy = FetchPolicy(
        seconds=config.shard_seconds * shards,
        stall_seconds=config.stall_seconds,
        retries=config.retries,
        retry_wait=config.retry_wait,
        retry_after=config.retry_after,
        workers=config.workers or count_cores(),
        fetch=FetchConfig(threads=config.threads, timeout=config.timeout, user_agent=config.user_agent, limits=limits),
    )
    results = attempts.fetch_all(encoded, policy, progress) | refused
    if progress:
        total = Counter(result.status for result in results.values())
        print("fetched: " + ", ".join(f"{count} {status}" for status, count in total.most_common()), file=sys.stderr)
        if total["ok"] < len(results):
            print(f"  {_common_failures(results)}", file=sys.stderr)
    return results


def _common_failures(results: dict[int, FetchResult]) -> str:
    """Return the three most common failures, with their messages."""
    failures = Counter((result.status, result.error or "") for result in results.values() if result.status != "ok")
    return "; ".join(f"{count} {status} ({message[:160]})" for (status, message), count in failures.most_common(3))


def _make_plan(table: pa.Table, shard: str, results: dict[int, FetchResult], config: DownloadConfig) -> pa.Table:
    plan = [
        row
        | {"key": sample_key(number, config.shard_size)}
        | (plan_columns(results[number]) if number in results else {})  # a row of the list that cannot be read
        for number, row in enumerate(table.to_pylist(), int(shard) * config.shard_size)
    ]
    further = [field for field in table.schema if field.name not in PLAN_SCHEMA.names]
    return pa.Table.from_pylist(plan, schema=plan_schema(further))


def _statuses(table: pa.Table) -> list[str | None]:
    """Return the outcomes that are known before fetching, such as bad_row; earlier versions have none."""
    return table["status"].to_pylist() if "status" in table.column_names else [None] * len(table)


def plan_columns(result: FetchResult) -> dict[str, Any]:
    """Return the outcome of a row and the place of its bytes, as columns of a plan."""
    columns: dict[str, Any] = {"status": result.status, "error": result.error}
    if result.tar is not None:
        columns |= {"body": os.fsencode(result.tar), "offset": result.offset, "size": result.size}
    return columns
