"""Stage 1: a list of URLs in, a shard set out, with an outcome for every row.

    read the list, split it into tables of a shard each -> rounds of shards
        -> fetch (img2dataset, in `.staging`) -> later passes over what may be retried -> publish.py -> `.staging` goes

Keys are img2dataset's (shard and position), given by the place in the input, and rows and members lie in input order:
the same answers from the servers make the same bytes, however often the run was killed. `--retry-failed` asks again,
another day, for the rows of finished shards whose failure may mend.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa

from blipcore.device import count_cores
from blipcore.io.reading import open_read
from blipcore.io.tars import walk_tar
from blipcore.io.storage import AnyPath, existing, list_names
from blipcore.io.writing import atomic_write
from capfilt.config import to_dict
from capfilt.engine.run import run_shards
from capfilt.errors import EngineError
from capfilt.ingest.duplicates import mark_duplicates, marked_kind
from capfilt.ingest.fetch.attempts import RETRYABLE, FetchResult, FetchPolicy, Attempts
from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import PRIVATE, FetchLimits
from capfilt.ingest.lists import file_fingerprint
from capfilt.ingest.shard_writer import (
    OUTCOMES,
    PLAN_SCHEMA,
    ROWS_FOLDER,
    ShardWriter,
    open_manifest,
    open_folders,
    sample_key,
    split_rows,
)
from capfilt.ingest.urls import is_private_host, read_urls, encode_url
from capfilt.shards.format import IMAGES
from capfilt.shards.manifest import Manifest
from capfilt.shards.tables import read_table, write_table

ROUND = 200_000  # rows fetched before any is published: bounds what lies in the staging folder
FIRST = 2  # shards of the first round, which tells whether to go on
AGAIN = "again"  # in the staging folder: what --retry-failed works in
INPUT = pa.schema([IMAGES.field("url"), IMAGES.field("caption")])


@dataclass
class DownloadConfig:
    """`capfilt download`."""

    urls: str  # txt, csv, tsv, json, jsonl (each also .gz) or parquet; a path or an fsspec URL
    out: str  # folder, or an fsspec URL
    url_col: str | None = None  # found by its usual names
    caption_col: str | None = None
    shard_size: int = 10_000  # rows to a shard
    image_size: int = 512  # longer side at most, larger pictures are shrunk; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 50_000_000  # body at most
    quality: int = 95  # of the JPEGs that have to be written anew
    timeout: float = 10.0  # seconds of a single wait on the network
    picture_seconds: float = 60.0  # wall clock of a picture
    shard_seconds: float = 7200.0  # wall clock of fetching a shard's worth of rows, later passes included
    stall_seconds: float = 180.0  # without any progress the fetching processes are ended
    retries: int = 1  # later passes over timeouts, broken connections, 429 and 5xx
    retry_wait: float = 5.0  # seconds before such a pass, doubled each time
    retry_after: float = 120.0  # seconds that a server's Retry-After may ask for; beyond, the row is left
    retry_failed: bool = False  # ask again for the rows of finished shards that failed in a way that may mend
    duplicates: Literal["", "exact", "near"] = ""  # mark pictures that are there twice, in DATA/duplicates
    workers: int = 0  # processes; 0 is one a core
    threads: int = 64  # connections to a process
    user_agent: str = "capfilt"  # how sites know us, and by which they can opt out
    allow_private: bool = False
    stop_below: float = 0.05  # share of the first shards' rows that must be ok to go on; 0 goes on in any case
    min_success: float = 0.2  # share of rows that must be ok for exit code 0

    def __post_init__(self) -> None:
        for name in ("shard_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("min_success", "stop_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")


# What the stored bytes do not depend on, given the same answers from the servers.
XX = ("urls", "out", "timeout", "picture_seconds", "shard_seconds", "stall_seconds", "retries")
XX += ("retry_wait", "retry_after", "retry_failed", "workers", "threads", "user_agent", "stop_below")
XX += ("min_success", "duplicates")


def download(config: DownloadConfig, progress: bool = True) -> dict[str, Any]:
    """Fetch what is not there yet; returns counts by outcome over the whole set."""
    if find_spec("img2dataset") is None:
        raise ImportError("capfilt download needs img2dataset; run: pip install img2dataset")
    start = time.monotonic()
    rows = read_urls(config.urls, config.url_col, config.caption_col)
    settings = {"input_sha256": file_fingerprint(config.urls)} | to_dict(config, without=XX)
    with open_folders(config.out) as (out, staging):
        _finish_swaps(out, staging)
        manifest = open_manifest(out, staging, "download", settings, ["img2dataset", "pillow", "pyarrow", "webdataset"])
        if "counts" in manifest.content:
            total = manifest.content["counts"]["rows"]
        else:
            pairs = ({"url": url, "caption": caption} for url, caption in rows)
            total, _ = split_rows(staging, pairs, INPUT, config.shard_size)
        shards = [f"{number:05d}" for number in range(-(-total // config.shard_size))]
        tables = {shard: out / f"{shard}.parquet" for shard in shards}
        before = existing(tables.values())
        pending = [shard for shard in shards if tables[shard] not in before]
        finished = [shard for shard in shards if tables[shard] in before]
        if progress and not pending and not config.retry_failed:
            print(f"download: all {len(shards)} shards are done already.", file=sys.stderr)
        if config.retry_failed:
            _require_no_stage(out)
        failed, stopped = _fetch_all(out, staging, pending, config, progress)
        if config.retry_failed and not stopped:
            failed |= _retry(out, staging, finished, manifest, config, progress)
        changed = bool(pending) or config.retry_failed or "counts" not in manifest.content
        counts = manifest.settle(tables, tables, failed, changed)
        there = existing(tables.values())
        if len(there) == len(shards) and not failed:
            shutil.rmtree(staging, ignore_errors=True)
        ready = [shard for shard in shards if tables[shard] in there]
        kind = config.duplicates or (marked_kind(out) if changed else "")
        duplicates = mark_duplicates(out, ready, kind) if kind else {}
    ok = counts.get("ok", 0)
    return {
        "stage": "download",
        "out": str(out),
        "rows": total,
        "ok": ok,
        "success": round(ok / total, 4),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES if outcome in counts},
        "shards": {"done": len(ready) - len(finished), "skipped": len(finished), "failed": failed},
        "stopped": stopped,
        "duplicates": duplicates,
        "seconds": round(time.monotonic() - start, 1),
    }


# ---------------------------------------------------------------------------------------------------- rounds


def _fetch_all(
    out: AnyPath, staging: Path, pending: list[str], config: DownloadConfig, progress: bool
) -> tuple[dict[str, str], str | None]:
    """Fetch and publish these shards; returns those that failed with the reason, and why the run stopped early."""
    failed: dict[str, str] = {}
    per_round = max(1, ROUND // config.shard_size)
    parts = [pending[:FIRST], *(pending[n : n + per_round] for n in range(FIRST, len(pending), per_round))]
    for number, part in enumerate(part for part in parts if part):
        rows = {shard: read_table(staging / ROWS_FOLDER / f"{shard}.parquet") for shard in part}
        urls = {
            int(shard) * config.shard_size + place: url
            for shard, table in rows.items()
            for place, url in enumerate(table["url"].to_pylist())
        }
        fetched = Attempts(staging / "fetched")
        answers = _ask(fetched, urls, len(part), config, progress)
        if not (staging / ROWS_FOLDER).exists():  # to write on would bring the folder back, with a part of the shards
            raise EngineError(f"{staging} was removed while download was at work in it; run the command again.")
        for shard, table in rows.items():
            write_table(staging / "plan" / f"{shard}.parquet", _plan(table, shard, answers, config))
        bad = _publish(out, staging / "plan", part, len(answers), config, progress)
        failed |= bad
        if not bad:
            _discard(fetched.folder)
        ok = sum(answer.status == "ok" for answer in answers.values())
        if number == 0 and len(part) < len(pending) and ok < config.stop_below * len(answers):
            few = f"only {ok} of the first {len(answers)} rows could be fetched: {_why(answers)}."
            return failed, f"{few} Run it again to go on, with --retry-failed to ask for these again too."
    return failed, None


def _discard(folder: Path) -> None:
    """Remove a folder of answers; a kill leaves all of them under its name or none, never a part."""
    gone = folder.with_name(f"gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def _publish(
    out: AnyPath, plans: Path, shards: list[str], rows: int, config: DownloadConfig, progress: bool
) -> dict[str, str]:
    stage = ShardWriter(str(plans), str(out), config.image_size, config.min_size, config.max_bytes, config.quality)
    crew = max(1, min(config.workers or count_cores(), rows // 500))  # a process costs a second to start
    return run_shards(stage, shards, workers=crew, device="cpu", progress=progress).failed


def _ask(
    staging: Attempts, urls: dict[int, str | None], shards: int, config: DownloadConfig, progress: bool
) -> dict[int, FetchResult]:
    """An answer for every URL, by its row in the input; what is not worth a request has its answer at once."""
    refused, asked = {}, {}
    for row, url in urls.items():
        try:
            wire = encode_url(url)
            host = urlsplit(wire).hostname or ""
            if not config.allow_private and is_private_host(host):
                raise ValueError(f"{PRIVATE}: {host}")
            asked[row] = wire
        except ValueError as error:
            refused[row] = FetchResult("bad_url", str(error))
    asking = FetchPolicy(
        seconds=config.shard_seconds * shards,
        stall_seconds=config.stall_seconds,
        retries=config.retries,
        retry_wait=config.retry_wait,
        retry_after=config.retry_after,
        workers=config.workers or count_cores(),
        fetch=FetchConfig(
            threads=config.threads,
            timeout=config.timeout,
            user_agent=config.user_agent,
            limits=FetchLimits(config.max_bytes, config.picture_seconds, config.allow_private),
        ),
    )
    answers = staging.ask(asked, asking, progress) | refused
    if progress:
        total = Counter(answer.status for answer in answers.values())
        print("fetched: " + ", ".join(f"{count} {status}" for status, count in total.most_common()), file=sys.stderr)
        if total["ok"] < len(answers):
            print(f"  {_why(answers)}", file=sys.stderr)
    return answers


def _why(answers: dict[int, FetchResult]) -> str:
    """The commonest messages behind what failed: the first thing to look at when much does."""
    bad = Counter((answer.status, answer.error or "") for answer in answers.values() if answer.status != "ok")
    return "; ".join(f"{count} {status} ({message[:160]})" for (status, message), count in bad.most_common(3))


def _plan(rows: pa.Table, shard: str, answers: dict[int, FetchResult], config: DownloadConfig) -> pa.Table:
    first = int(shard) * config.shard_size
    plan = [
        row | {"key": sample_key(number, config.shard_size)} | _place(answers[number])
        for number, row in enumerate(rows.to_pylist(), first)
    ]
    return pa.Table.from_pylist(plan, schema=PLAN_SCHEMA)


def _place(answer: FetchResult) -> dict[str, Any]:
    if answer.tar is None:
        return {"status": answer.status, "error": answer.error}
    return {
        "status": answer.status,
        "error": answer.error,
        "body": os.fsencode(answer.tar),
        "offset": answer.offset,
        "size": answer.size,
    }


# ---------------------------------------------------------------------------------------------------- another day


def _require_no_stage(out: AnyPath) -> None:
    for folder in (
        out / stage / name for stage in ("captions", "scores", "filtered") for name in list_names(out / stage)
    ):
        if any(name.endswith(".parquet") for name in list_names(folder)):
            raise ValueError(
                f"{folder} was made from these shards, which --retry-failed would change; delete it first, or "
                "download the failed rows as a list of their own."
            )


def _retry(
    out: AnyPath, staging: Path, shards: list[str], manifest: Manifest, config: DownloadConfig, progress: bool
) -> dict[str, str]:
    """Ask again for the rows of finished shards that may mend; a shard with such rows is written anew."""
    failed: dict[str, str] = {}
    again = staging / AGAIN
    per_round = max(1, ROUND // config.shard_size)
    for first in range(0, len(shards), per_round):
        part = shards[first : first + per_round]
        tables = {shard: read_table(out / f"{shard}.parquet") for shard in part}
        urls = {
            int(shard) * config.shard_size + place: url
            for shard, table in tables.items()
            for place, (url, status) in enumerate(zip(*(table[n].to_pylist() for n in ("url", "status")), strict=True))
            if status in RETRYABLE
        }
        if not urls:
            continue
        answers = _ask(Attempts(again / "fetched"), urls, len(part), config, progress)
        changed = [f"{number:05d}" for number in sorted({row // config.shard_size for row in urls})]
        for shard in changed:
            write_table(again / "plan" / f"{shard}.parquet", _plan_again(out, tables[shard], shard, answers, config))
        manifest.reopen()
        bad = _publish(again, again / "plan", changed, len(answers), config, progress)
        failed |= bad
        if not bad:
            _finish_swaps(out, staging)
            _discard(again)
    return failed


def _plan_again(
    out: AnyPath, table: pa.Table, shard: str, answers: dict[int, FetchResult], config: DownloadConfig
) -> pa.Table:
    """The plan of a shard as it is, with new answers for some of its rows; its pictures stay as they are."""
    tar = out / f"{shard}.tar"
    with open_read(tar) as file:
        members = {member.name: member for member in walk_tar(file, [])}
    plan = []
    for number, row in enumerate(table.to_pylist(), int(shard) * config.shard_size):
        if number in answers:
            row |= _place(answers[number])
        elif row["status"] == "ok":
            member = members.get(f"{row['key']}.jpg")
            if member is None:
                raise ValueError(
                    f"{tar} is damaged; remove it and its table, and run the command without --retry-failed."
                )
            row |= {"body": os.fsencode(str(tar)), "offset": member.offset, "size": member.size}
        plan.append(row)
    return pa.Table.from_pylist(plan, schema=PLAN_SCHEMA)


def _finish_swaps(out: AnyPath, staging: Path) -> None:
    """Put shards that were written anew in the place of the old ones; a kill in between leaves the shard unfinished."""
    for table in sorted((staging / AGAIN).glob("*.parquet")):
        (out / table.name).unlink(missing_ok=True)
        if table.with_suffix(".tar").exists():  # else it is in place already
            _move(table.with_suffix(".tar"), out / f"{table.stem}.tar")
        _move(table, out / table.name)


def _move(source: Path, target: AnyPath) -> None:
    if isinstance(target, Path):
        os.replace(source, target)
        return
    with open(source, "rb") as file, atomic_write(target) as there:
        shutil.copyfileobj(file, there)
    source.unlink()
