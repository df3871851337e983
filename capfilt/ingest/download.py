"""Stage 1: turns a list of URLs into a shard set, with an outcome for every row.

1. Split the list into a table per shard.
2. Fetch some shards at a time with img2dataset, in the folder `.staging`; retry temporary failures.
3. Write these shards (`shard_writer.py`), then remove what was fetched.

Keys are img2dataset's and follow the order of the input. The same responses therefore give the same bytes, however
often the run was killed. `--retry-failed` retries the temporary failures of complete shards in a later run.
"""

from __future__ import annotations

import shutil
import sys
import time
from importlib.util import find_spec
from typing import Any

import pyarrow as pa

from blipcore.io.storage import existing_paths
from capfilt.ingest.account import record_account
from capfilt.ingest.download_config import DownloadConfig
from capfilt.ingest.duplicates import mark_duplicates, marked_kind
from capfilt.ingest.keep_columns import FurtherColumns
from capfilt.ingest.lists.list_files import file_fingerprint
from capfilt.ingest.lists.url_list import UrlList
from capfilt.ingest.open_set import InputRows, manifest_settings, open_set
from capfilt.ingest.plans import PLAN_SCHEMA
from capfilt.ingest.retry_failed import replace_shards, require_no_derived_tables, retry_failed_rows
from capfilt.ingest.rounds import download_shards
from capfilt.ingest.shard_writer import OUTCOMES, open_folders

INPUT_COLUMNS = ("url", "caption", "status", "error", "more", "more_columns", "checksum")
INPUT_SCHEMA = pa.schema([PLAN_SCHEMA.field(name) for name in INPUT_COLUMNS])


def download(config: DownloadConfig, progress: bool = True) -> dict[str, Any]:
    """Download the shards that are missing; return the counts by outcome over the whole set."""
    if find_spec("img2dataset") is None:
        raise ImportError("capfilt download needs img2dataset; run: pip install img2dataset")
    start = time.monotonic()
    urls = UrlList(config.urls, config.url_col, config.caption_col, config.list_options(), config.max_bad_rows)
    urls.require_columns()
    source = InputRows(
        config.urls,
        iter(urls),
        file_fingerprint(*urls.list.files),
        INPUT_SCHEMA,
        FurtherColumns(config.keep_columns, urls.further),
        by_url=True,
    )
    packages = ["img2dataset", "pillow", "pyarrow", "webdataset"]
    with open_folders(config.out) as (out, staging):
        replace_shards(out, staging)
        data = open_set(out, staging, "download", manifest_settings(config), packages, source)
        account = record_account(data.manifest, urls.account if urls.counts else None, progress)
        tables = {shard: out / f"{shard}.parquet" for shard in data.shards}
        existing_tables = existing_paths(tables.values())
        pending = [shard for shard in data.shards if tables[shard] not in existing_tables]
        skipped = [shard for shard in data.shards if tables[shard] in existing_tables]
        if progress and not pending and not config.retry_failed:
            print(f"download: all {len(data.shards)} shards are done already.", file=sys.stderr)
        if config.retry_failed:
            require_no_derived_tables(out)
        failed, stopped = download_shards(out, staging, pending, data, config, progress)
        if config.retry_failed and not stopped:
            failed |= retry_failed_rows(out, staging, skipped, data.manifest, urls.rows(), config, progress)
        changed = bool(pending) or config.retry_failed or "counts" not in data.manifest.content
        if pending and len(existing_paths(tables.values())) == len(tables):
            data.finish_captions()
        counts = data.manifest.record_run(tables, tables, failed, changed)
        existing_tables = existing_paths(tables.values())
        if len(existing_tables) == len(data.shards) and not failed:
            shutil.rmtree(staging, ignore_errors=True)
        complete = [shard for shard in data.shards if tables[shard] in existing_tables]
        duplicate_kind = config.duplicates or (marked_kind(out) if changed else "")
        duplicates = mark_duplicates(out, complete, duplicate_kind) if duplicate_kind else {}
    ok, total = counts.get("ok", 0), counts.get("rows", data.split.rows)
    return {
        "stage": "download",
        "out": str(out),
        "account": account,
        "rows": total,
        "ok": ok,
        "success": round(ok / max(1, total), 4),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES if outcome in counts},
        "shards": {"done": len(complete) - len(skipped), "skipped": len(skipped), "failed": failed},
        "stopped": stopped,
        "duplicates": duplicates,
        "seconds": round(time.monotonic() - start, 1),
    }
