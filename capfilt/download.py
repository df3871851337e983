"""Stage 1: a list of URLs in, a shard set out, with an outcome for every row.

    read_urls -> rounds of shards -> fetch (img2dataset, in `.staging`) -> later passes over what may be retried
              -> decode, turn, fit -> 00000.tar, then 00000.parquet: the shard is there -> `.staging` goes

Keys are img2dataset's (shard and position), given by the place in the input, and rows and members lie in input order:
the same answers from the servers make the same bytes, however often the run was killed.
"""

from __future__ import annotations

import functools
import hashlib
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa

from capfilt import engine
from capfilt.config import to_dict
from capfilt.fetch import PRIVATE, FetchConfig, Limits
from capfilt.manifest import Manifest
from capfilt.pictures import DecodeError, fit
from capfilt.progress import Display
from capfilt.shards import (
    IMAGES,
    Picture,
    read_counts,
    read_manifest,
    read_table,
    sweep,
    write_shard,
    write_table,
)
from capfilt.staging import APART, PER_PROCESS, Answer, FetchError, Staging
from capfilt.urls import fingerprint, is_private_host, read_urls, wire_url

OUTCOMES = ("ok", "not_found", "forbidden", "opted_out", "timeout", "connection", "rate_limited", "server_error")
OUTCOMES += ("too_large", "too_small", "decode_error", "bad_url", "other")
STAGING = ".staging"
ROUND = 200_000  # rows fetched before any is published: bounds what lies in the staging folder
# What a row in hand is: where its body lies, or what became of it.
PLAN = pa.schema(
    [
        *(IMAGES.field(name) for name in ("key", "url", "caption", "status", "error")),
        ("body", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


@dataclass
class DownloadConfig:
    """`capfilt download`."""

    urls: str  # txt, csv, tsv, json, jsonl (each also .gz) or parquet
    out: str
    url_col: str | None = None  # found by its usual names
    caption_col: str | None = None
    shard_size: int = 10_000  # rows to a shard
    image_size: int = 512  # longer side at most, larger pictures are shrunk; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 50_000_000  # body at most
    quality: int = 95  # of the JPEGs that have to be written anew
    timeout: float = 10.0  # seconds of a single wait on the network
    picture_seconds: float = 60.0  # wall clock of a picture
    stall_seconds: float = 180.0  # without any progress the fetching processes are ended
    retries: int = 1  # later passes over timeouts, broken connections, 429 and 5xx
    retry_wait: float = 5.0  # seconds before such a pass, doubled each time
    workers: int = 0  # processes; 0 is one a core
    threads: int = 64  # connections to a process
    user_agent: str = "capfilt"  # how sites know us, and by which they can opt out
    allow_private: bool = False
    min_success: float = 0.2  # share of rows that must be ok for exit code 0

    def __post_init__(self) -> None:
        for name in ("shard_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.min_success <= 1:
            raise ValueError(f"min_success is a share between 0 and 1, not {self.min_success}.")


# What the stored bytes do not depend on, given the same answers from the servers.
WITHOUT_EFFECT = ("urls", "out", "timeout", "picture_seconds", "stall_seconds", "retries", "retry_wait", "workers")
WITHOUT_EFFECT += ("threads", "user_agent", "min_success")


def download(config: DownloadConfig, progress: bool = True) -> dict[str, Any]:
    """Fetch what is not there yet; returns counts by outcome over the whole set."""
    if find_spec("img2dataset") is None:
        raise ImportError("capfilt download needs img2dataset; run: pip install img2dataset")
    start, out = time.monotonic(), Path(config.out)
    rows = read_urls(config.urls, config.url_col, config.caption_col)
    manifest = _claim(out, rows, config)
    shards = [f"{number:05d}" for number in range(math.ceil(rows.num_rows / config.shard_size))]
    pending = [shard for shard in shards if not (out / f"{shard}.parquet").exists()]
    if progress and not pending:
        print(f"download: all {len(shards)} shards are done already.", file=sys.stderr)
    failed: dict[str, str] = {}
    per_round = max(1, ROUND // config.shard_size)
    for first in range(0, len(pending), per_round):
        failed |= _round(out, rows, pending[first : first + per_round], config, progress)
    sweep(out)
    counts = read_counts(out / f"{shard}.parquet" for shard in shards if shard not in failed)
    if not failed:
        manifest.finish(counts)
    ok = counts.get("ok", 0)
    return {
        "stage": "download",
        "out": str(out),
        "rows": rows.num_rows,
        "ok": ok,
        "success": round(ok / rows.num_rows, 4),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES if outcome in counts},
        "shards": {"done": len(pending) - len(failed), "skipped": len(shards) - len(pending), "failed": failed},
        "seconds": round(time.monotonic() - start, 1),
    }


def _claim(out: Path, rows: pa.Table, config: DownloadConfig) -> Manifest:
    if out.is_file():
        raise ValueError(f"{out} is a file; give a folder for the shards.")
    if read_manifest(out) is None:
        if any(out.glob("*.tar")):
            raise ValueError(f"{out} holds shards that `capfilt download` has not made; choose another folder.")
        shutil.rmtree(out / STAGING, ignore_errors=True)  # bodies of another list
    settings = {"input_sha256": fingerprint(config.urls), "rows": rows.num_rows}
    settings |= to_dict(config, without=WITHOUT_EFFECT)
    return Manifest.begin(out, "download", settings, packages=["img2dataset", "pillow", "pyarrow", "webdataset"])


def _round(out: Path, rows: pa.Table, shards: list[str], config: DownloadConfig, progress: bool) -> dict[str, str]:
    """Fetch and publish these shards; returns those that failed with the reason."""
    staging, workers = Staging(out / STAGING), config.workers or engine.cores()
    answers = _fetch(staging, rows, shards, config, workers, progress)
    if progress:
        _tell(answers)
    for shard in shards:
        write_table(staging.folder / "plan" / f"{shard}.parquet", _plan(rows, shard, answers, config))
    stage = Publish(str(out), config.image_size, config.min_size, config.quality)
    crew = max(1, min(workers, len(answers) // PER_PROCESS))
    summary = engine.run(stage, shards, workers=crew, device="cpu", progress=progress)
    if not summary.failed:
        shutil.rmtree(staging.folder)
    return summary.failed


# ---------------------------------------------------------------------------------------------------- fetching


def _fetch(
    staging: Staging, rows: pa.Table, shards: list[str], config: DownloadConfig, workers: int, progress: bool
) -> dict[int, Answer]:
    """An answer for every row of these shards, by its number in the input."""
    refused, asked = {}, {}
    for shard in shards:
        start = int(shard) * config.shard_size
        for uid, url in enumerate(rows["url"].slice(start, config.shard_size).to_pylist(), start):
            try:
                asked[uid] = wire_url(url)
                host = urlsplit(asked[uid]).hostname or ""
                if not config.allow_private and is_private_host(host):
                    raise ValueError(f"{PRIVATE}: {host}")
            except ValueError as error:
                asked.pop(uid, None)
                refused[uid] = Answer("bad_url", str(error))

    limits = Limits(config.max_bytes, config.picture_seconds, config.allow_private)
    common = {"threads": config.threads, "timeout": config.timeout, "user_agent": config.user_agent, "limits": limits}
    wait, fruitless, stalled = config.retry_wait, 0, False
    answers = staging.answers(asked)
    while True:
        todo = [(uid, url) for uid, url in asked.items() if uid not in answers]
        again = [(uid, url) for uid, url in asked.items() if uid in answers and not answers[uid].final(config.retries)]
        if (not todo and not again) or fruitless > (1 if len(todo) > APART else 0):
            break
        title = "fetch" if todo else "fetch again"
        if not todo:  # first everything once, then with some distance in time what did not answer well
            todo = again
            time.sleep(wait)
            wait *= 2
        with Display(title, len(todo), unit="rows", shown=progress) as display:

            def tick(through: int, display: Display = display) -> None:
                display.advance(through - display.done, through - display.done)

            settings = functools.partial(FetchConfig, **common)
            ended = staging.fetch(todo, settings, workers, config.stall_seconds, tick, small=stalled)
        news = staging.answers(asked)
        fruitless = 0 if news != answers else fruitless + 1
        answers, stalled = news, ended == "stalled"
        if ended == "died" and fruitless:
            raise FetchError(f"img2dataset ended early: {staging.last_words()} ({staging.attempts()[-1]}/log.txt)")
    missing = Answer("timeout", f"no answer, and no progress for {config.stall_seconds:g} s")
    return {uid: answers.get(uid, missing) for uid in asked} | refused


def _plan(rows: pa.Table, shard: str, answers: dict[int, Answer], config: DownloadConfig) -> pa.Table:
    start = int(shard) * config.shard_size
    part = rows.slice(start, config.shard_size)
    order = math.ceil(math.log10(config.shard_size))
    mine = [answers[uid] for uid in range(start, start + part.num_rows)]
    return pa.table(
        {
            "key": [f"{int(shard) * 10**order + index:0{order + 5}d}" for index in range(part.num_rows)],
            "url": part["url"],
            "caption": part["caption"],
            "status": [answer.status for answer in mine],
            "error": [answer.error for answer in mine],
            "body": [answer.tar for answer in mine],
            "offset": [answer.offset for answer in mine],
            "size": [answer.size for answer in mine],
        },
        schema=PLAN,
    )


def _tell(answers: dict[int, Answer]) -> None:
    """What came back, and the commonest messages behind what did not: the first thing to look at when much fails."""
    total = Counter(answer.status for answer in answers.values())
    print("fetched: " + ", ".join(f"{count} {status}" for status, count in total.most_common()), file=sys.stderr)
    bad = Counter((answer.status, answer.error or "") for answer in answers.values() if answer.status != "ok")
    for (status, message), count in bad.most_common(3):
        print(f"  {count} {status}: {message[:160]}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------- publishing


@dataclass
class Publish:
    """Engine stage: the bodies of a shard -> fitted pictures in a tar, and its table."""

    out: str
    image_size: int
    min_size: int
    quality: int
    name: str = "publish"

    def output(self, shard: str) -> Path:
        return Path(self.out) / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def run(self, shard: str) -> dict[str, int]:
        rows = read_table(Path(self.out) / STAGING / "plan" / f"{shard}.parquet").to_pylist()
        write_shard(Path(self.out) / f"{shard}.tar", self._pictures(rows))
        counts = Counter(row["status"] for row in rows) | Counter(rows=len(rows))
        # the table last: with it the shard is there
        write_table(self.output(shard), pa.Table.from_pylist(rows, schema=IMAGES), counts=dict(counts))
        return {**counts, "pictures": counts["ok"]}

    def _pictures(self, rows: list[dict[str, Any]]) -> Iterator[Picture]:
        """The rows that are pictures; `rows` are completed in passing."""
        bodies: dict[str, BinaryIO] = {}
        with ExitStack() as stack:
            for row in rows:
                body, offset, size = (row.pop(name) for name in ("body", "offset", "size"))
                if row["status"] != "ok":
                    continue
                if body not in bodies:
                    bodies[body] = stack.enter_context(open(Path(self.out) / STAGING / body, "rb"))
                bodies[body].seek(offset)
                picture = self._fitted(row, bodies[body].read(size))
                if picture is not None:
                    engine.advance(1)
                    yield picture

    def _fitted(self, row: dict[str, Any], data: bytes) -> Picture | None:
        try:
            fitted = fit(data, self.image_size, self.quality)
        except DecodeError as error:
            row["status"] = "too_large" if error.reason == "too_many_pixels" else "decode_error"
            row["error"] = str(error)
            return None
        row["original_width"], row["original_height"] = fitted.original_width, fitted.original_height
        if min(fitted.original_width, fitted.original_height) < self.min_size:
            row["status"] = "too_small"
            row["error"] = f"{fitted.original_width} x {fitted.original_height}"
            return None
        row["width"], row["height"], row["bytes"] = fitted.width, fitted.height, len(fitted.data)
        row["sha256"] = hashlib.sha256(fitted.data).hexdigest()
        about = {name: row[name] for name in IMAGES.names if row.get(name) is not None}
        return Picture(row["key"], fitted.data, row["caption"], about)
