"""Stage 1: turns a list of URLs into a shard set, with an outcome for every row.

1. Split the list into a table per shard.
2. Fetch some shards at a time with img2dataset, in the folder `.staging`; retry temporary failures.
3. Write these shards (`shard_writer.py`), then remove what was fetched.

Keys are img2dataset's and follow the order of the input. The same responses therefore give the same bytes, however
often the run was killed. `--retry-failed` retries the temporary failures of complete shards in a later run.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from blipcore.device import count_cores
from blipcore.io.config_diff import INCIDENTAL, incidental_fields
from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, existing_paths, list_names
from blipcore.io.tars import walk_tar
from blipcore.io.writing import atomic_write
from capfilt.config import to_dict
from capfilt.engine.run import run_shards
from capfilt.errors import EngineError
from capfilt.ingest.duplicates import mark_duplicates, marked_kind
from capfilt.ingest.fetch.attempts import RETRYABLE, Attempts, FetchPolicy, FetchResult
from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import FetchLimits
from capfilt.ingest.lists import file_fingerprint
from capfilt.ingest.shard_writer import (
    OUTCOMES,
    PLAN_SCHEMA,
    ROWS_FOLDER,
    ShardWriter,
    open_folders,
    open_manifest,
    sample_key,
    split_rows,
)
from capfilt.ingest.urls import check_url, read_urls
from capfilt.shards.format import IMAGES
from capfilt.shards.manifest import Manifest
from capfilt.shards.tables import read_table, write_table

ROWS_PER_ROUND = 200_000  # fetched before their shards are written; bounds the size of the staging folder
FIRST_ROUND_SHARDS = 2  # the outcomes of these decide whether the run continues
ROWS_PER_PROCESS = 500  # fewer are not worth starting a process, which takes a second
RETRY_FOLDER = "again"  # subfolder of the staging folder for --retry-failed
INPUT_SCHEMA = pa.schema([IMAGES.field("url"), IMAGES.field("caption")])


@dataclass
class DownloadConfig:
    """Settings of `capfilt download`. Times are in seconds.

    Incidental settings do not change the stored bytes, given the same responses. The content of the list is identified
    by its fingerprint, not by its path.
    """

    # txt, csv, tsv, json, jsonl (each also with .gz) or parquet; a path or an fsspec URL
    urls: str = field(metadata=INCIDENTAL)
    out: str = field(metadata=INCIDENTAL)  # folder, or an fsspec URL
    url_col: str | None = None  # default: one of the usual names
    caption_col: str | None = None
    shard_size: int = 10_000  # rows per shard
    image_size: int = 512  # longer side at most, larger pictures are shrunk; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 50_000_000  # of a body
    quality: int = 95  # of pictures that are stored as a new JPEG
    timeout: float = field(default=10.0, metadata=INCIDENTAL)  # limit of a single wait on the network
    picture_seconds: float = field(default=60.0, metadata=INCIDENTAL)  # limit per picture
    # limit for fetching the rows of a shard, including retries
    shard_seconds: float = field(default=7200.0, metadata=INCIDENTAL)
    # time without any progress after which the fetching processes are killed
    stall_seconds: float = field(default=180.0, metadata=INCIDENTAL)
    retries: int = field(default=1, metadata=INCIDENTAL)  # retries of timeouts, broken connections, 429 and 5xx
    # wait before the first retry; doubled for each further one
    retry_wait: float = field(default=5.0, metadata=INCIDENTAL)
    # a row whose server asks for a longer wait with Retry-After is not retried
    retry_after: float = field(default=120.0, metadata=INCIDENTAL)
    # retry the rows of complete shards that have failed temporarily
    retry_failed: bool = field(default=False, metadata=INCIDENTAL)
    # mark duplicate pictures in DATA/duplicates
    duplicates: Literal["", "exact", "near"] = field(default="", metadata=INCIDENTAL)
    workers: int = field(default=0, metadata=INCIDENTAL)  # processes; 0 means one per core
    threads: int = field(default=64, metadata=INCIDENTAL)  # connections per process
    # name that sites see, and can refuse in X-Robots-Tag
    user_agent: str = field(default="capfilt", metadata=INCIDENTAL)
    allow_private: bool = False
    # stop the run if a smaller share of the first shards' rows is ok
    stop_below: float = field(default=0.05, metadata=INCIDENTAL)
    min_success: float = field(default=0.2, metadata=INCIDENTAL)  # share of rows that must be ok for exit code 0

    def __post_init__(self) -> None:
        for name in ("shard_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("min_success", "stop_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")


def download(config: DownloadConfig, progress: bool = True) -> dict[str, Any]:
    """Download the shards that are missing; return the counts by outcome over the whole set."""
    if find_spec("img2dataset") is None:
        raise ImportError("capfilt download needs img2dataset; run: pip install img2dataset")
    start = time.monotonic()
    rows = read_urls(config.urls, config.url_col, config.caption_col)
    settings = {"input_sha256": file_fingerprint(config.urls)} | to_dict(config, without=incidental_fields(config))
    with open_folders(config.out) as (out, staging):
        _replace_shards(out, staging)
        manifest = open_manifest(out, staging, "download", settings, ["img2dataset", "pillow", "pyarrow", "webdataset"])
        if "counts" in manifest.content:
            total = manifest.content["counts"]["rows"]
        else:
            pairs = ({"url": url, "caption": caption} for url, caption in rows)
            total, _ = split_rows(staging, pairs, INPUT_SCHEMA, config.shard_size)
        shards = [f"{number:05d}" for number in range(-(-total // config.shard_size))]
        tables = {shard: out / f"{shard}.parquet" for shard in shards}
        existing_tables = existing_paths(tables.values())
        pending = [shard for shard in shards if tables[shard] not in existing_tables]
        skipped = [shard for shard in shards if tables[shard] in existing_tables]
        if progress and not pending and not config.retry_failed:
            print(f"download: all {len(shards)} shards are done already.", file=sys.stderr)
        if config.retry_failed:
            _require_no_derived_tables(out)
        failed, stopped = _download_shards(out, staging, pending, config, progress)
        if config.retry_failed and not stopped:
            failed |= _retry_failed_rows(out, staging, skipped, manifest, config, progress)
        changed = bool(pending) or config.retry_failed or "counts" not in manifest.content
        counts = manifest.record_run(tables, tables, failed, changed)
        existing_tables = existing_paths(tables.values())
        if len(existing_tables) == len(shards) and not failed:
            shutil.rmtree(staging, ignore_errors=True)
        complete = [shard for shard in shards if tables[shard] in existing_tables]
        duplicate_kind = config.duplicates or (marked_kind(out) if changed else "")
        duplicates = mark_duplicates(out, complete, duplicate_kind) if duplicate_kind else {}
    ok = counts.get("ok", 0)
    return {
        "stage": "download",
        "out": str(out),
        "rows": total,
        "ok": ok,
        "success": round(ok / total, 4),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES if outcome in counts},
        "shards": {"done": len(complete) - len(skipped), "skipped": len(skipped), "failed": failed},
        "stopped": stopped,
        "duplicates": duplicates,
        "seconds": round(time.monotonic() - start, 1),
    }


# ---------------------------------------------------------------------------------------------------- rounds


def _download_shards(
    out: AnyPath, staging: Path, pending: list[str], config: DownloadConfig, progress: bool
) -> tuple[dict[str, str], str | None]:
    """Fetch and write these shards; return those that failed with the reason, and the reason of an early stop."""
    failed: dict[str, str] = {}
    per_round = max(1, ROWS_PER_ROUND // config.shard_size)
    rest = pending[FIRST_ROUND_SHARDS:]
    rounds = [pending[:FIRST_ROUND_SHARDS], *(rest[n : n + per_round] for n in range(0, len(rest), per_round))]
    for shards in rounds if pending else []:
        tables = {shard: read_table(staging / ROWS_FOLDER / f"{shard}.parquet") for shard in shards}
        urls = {
            int(shard) * config.shard_size + index: url
            for shard, table in tables.items()
            for index, url in enumerate(table["url"].to_pylist())
        }
        attempts = Attempts(staging / "fetched")
        results = _fetch_urls(attempts, urls, len(shards), config, progress)
        if not (staging / ROWS_FOLDER).exists():  # writing would create the folder again, with some of the shards
            raise EngineError(f"{staging} was removed while download was writing to it; run the command again.")
        for shard, table in tables.items():
            write_table(staging / "plan" / f"{shard}.parquet", _make_plan(table, shard, results, config))
        newly_failed = _write_shards(out, staging / "plan", shards, len(results), config, progress)
        failed |= newly_failed
        if not newly_failed:
            _remove_results(attempts.folder)
        ok = sum(result.status == "ok" for result in results.values())
        if shards is rounds[0] and rest and ok < config.stop_below * len(results):
            problem = f"only {ok} of the first {len(results)} rows could be fetched: {_common_failures(results)}."
            return failed, f"{problem} Run the command again to continue, with --retry-failed to retry these rows too."
    return failed, None


def _remove_results(folder: Path) -> None:
    """Remove the results of attempts. They are renamed first, so that a kill leaves all or none."""
    renamed = folder.with_name(f"gone-{folder.name}")
    shutil.rmtree(renamed, ignore_errors=True)
    folder.rename(renamed)
    shutil.rmtree(renamed)


def _write_shards(
    out: AnyPath, plans: Path, shards: list[str], rows: int, config: DownloadConfig, progress: bool
) -> dict[str, str]:
    stage = ShardWriter(str(plans), str(out), config.image_size, config.min_size, config.max_bytes, config.quality)
    workers = max(1, min(config.workers or count_cores(), rows // ROWS_PER_PROCESS))
    return run_shards(stage, shards, workers=workers, device="cpu", progress=progress).failed


def _fetch_urls(
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
        row | {"key": sample_key(number, config.shard_size)} | _plan_columns(results[number])
        for number, row in enumerate(table.to_pylist(), int(shard) * config.shard_size)
    ]
    return pa.Table.from_pylist(plan, schema=PLAN_SCHEMA)


def _plan_columns(result: FetchResult) -> dict[str, Any]:
    columns: dict[str, Any] = {"status": result.status, "error": result.error}
    if result.tar is not None:
        columns |= {"body": os.fsencode(result.tar), "offset": result.offset, "size": result.size}
    return columns


# ---------------------------------------------------------------------------------------------------- --retry-failed


def _require_no_derived_tables(out: AnyPath) -> None:
    """Raise ValueError if captions, scores or filtered sets were made from these shards."""
    for stage in ("captions", "scores", "filtered"):
        for folder in (out / stage / name for name in list_names(out / stage)):
            if any(name.endswith(".parquet") for name in list_names(folder)):
                raise ValueError(
                    f"{folder} was made from these shards, which --retry-failed would change; delete it first, or "
                    "download the failed rows as a separate list."
                )


def _retry_failed_rows(
    out: AnyPath, staging: Path, shards: list[str], manifest: Manifest, config: DownloadConfig, progress: bool
) -> dict[str, str]:
    """Retry the temporary failures of complete shards and replace the shards; return those that failed."""
    failed: dict[str, str] = {}
    folder = staging / RETRY_FOLDER
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
        results = _fetch_urls(Attempts(folder / "fetched"), urls, len(part), config, progress)
        changed = [f"{number:05d}" for number in sorted({row // config.shard_size for row in urls})]
        for shard in changed:
            plan = _make_retry_plan(out, tables[shard], shard, results, config)
            write_table(folder / "plan" / f"{shard}.parquet", plan)
        manifest.drop_counts()
        newly_failed = _write_shards(folder, folder / "plan", changed, len(results), config, progress)
        failed |= newly_failed
        if not newly_failed:
            _replace_shards(out, staging)
            _remove_results(folder)
    return failed


def _make_retry_plan(
    out: AnyPath, table: pa.Table, shard: str, results: dict[int, FetchResult], config: DownloadConfig
) -> pa.Table:
    """Return the plan of a complete shard with new results for some rows; its other pictures are in its tar."""
    tar = out / f"{shard}.tar"
    with open_read(tar) as file:
        members = {member.name: member for member in walk_tar(file, [])}
    plan = []
    for number, row in enumerate(table.to_pylist(), int(shard) * config.shard_size):
        if number in results:
            row |= _plan_columns(results[number])
        elif row["status"] == "ok":
            member = members.get(f"{row['key']}.jpg")
            if member is None:
                raise ValueError(
                    f"{tar} is damaged; remove it and its table, and run the command without --retry-failed."
                )
            row |= {"body": os.fsencode(str(tar)), "offset": member.offset, "size": member.size}
        plan.append(row)
    return pa.Table.from_pylist(plan, schema=PLAN_SCHEMA)


def _replace_shards(out: AnyPath, staging: Path) -> None:
    """Replace shards by those written in the retry folder. After a kill, the shard has no table and is incomplete."""
    for table in sorted((staging / RETRY_FOLDER).glob("*.parquet")):
        (out / table.name).unlink(missing_ok=True)
        tar = table.with_suffix(".tar")
        if tar.exists():  # otherwise an earlier run has moved it
            _move(tar, out / tar.name)
        _move(table, out / table.name)


def _move(source: Path, target: AnyPath) -> None:
    if isinstance(target, Path):
        os.replace(source, target)
        return
    with open(source, "rb") as source_file, atomic_write(target) as target_file:
        shutil.copyfileobj(source_file, target_file)
    source.unlink()
