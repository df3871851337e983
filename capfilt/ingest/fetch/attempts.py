"""Fetches rows with img2dataset in several attempts, until each row has a result.

Each attempt has its own folder:

    a000/{urls.parquet, fetch.json, log.txt, out/00000.tar, out/00000.parquet, ...}

The results are read from these files alone: the tars hold the bodies with their row numbers, the tables the failures.
So the results of an attempt count even if it was killed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.reading import read_tail
from blipcore.io.storage import DISK_FULL_ERRNOS
from blipcore.io.tars import walk_tar
from capfilt.engine.progress import ProgressDisplay
from capfilt.ingest.fetch.content_encoding import BROKEN_ENCODING, UNKNOWN_ENCODING
from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import RESERVED, RETRY_AFTER, TOO_LARGE, TOO_SLOW
from capfilt.ingest.fetch.supervisor import FetchEnd, run_fetcher
from capfilt.ingest.lists.urls import PRIVATE
from capfilt.shards.tables import write_table

RETRYABLE = frozenset({"timeout", "connection", "rate_limited", "server_error"})
# Parts of the message for an unknown host; the numbers depend on the operating system.
UNKNOWN_HOST = tuple(
    f"[Errno {getattr(socket, name)}]" for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)
ROWS_PER_PROCESS = 500  # fewer are not worth starting a process, which takes a second
MIN_PROCESSES_AFTER_STALL = 4  # so that a row that stalls holds up one process only
# Outcome -> parts of messages, in lower case; the first match counts.
FAILURE_SIGNS = {
    "opted_out": ("x-robots-tag", RESERVED),
    "bad_url": (PRIVATE, "unknown url type", "no host given", "url can't contain", "nonnumeric port"),
    "too_large": (TOO_LARGE,),
    "decode_error": (UNKNOWN_ENCODING, BROKEN_ENCODING),
    "timeout": (TOO_SLOW, "timed out", "timeout"),
    "connection": (
        "urlopen error",
        "connection",
        "errno",
        "incompleteread",
        "remote end closed",
        "ssl",
        "name resolution",
        "name or service",
        "badstatusline",
        "broken pipe",
        "reset by peer",
        "line too long",
    ),
}
HTTP_OUTCOMES = {
    "401": "forbidden",
    "403": "forbidden",
    "404": "not_found",
    "408": "timeout",
    "410": "not_found",
    "429": "rate_limited",
    "451": "forbidden",
}


class FetchError(RuntimeError):
    """img2dataset cannot run, for any URL."""


@dataclass
class FetchResult:
    """The result of a row: `status` "ok" and the place of its body in a tar, or an outcome and the raw message."""

    status: str
    error: str | None = None
    tar: str | None = None
    offset: int = 0
    size: int = 0
    tries: int = 1

    @property
    def retry_after(self) -> float:
        """Seconds of the server's Retry-After, 0 without one."""
        match = re.search(rf"{RETRY_AFTER} (\d+)", self.error or "")
        return float(match.group(1)) if match else 0.0

    def is_final(self, policy: FetchPolicy) -> bool:
        """Return whether another try is useless, not allowed, or would have to wait too long."""
        unknown_host = any(sign in (self.error or "") for sign in UNKNOWN_HOST)
        out_of_tries = self.tries > policy.retries or self.retry_after > policy.retry_after
        return self.status not in RETRYABLE or unknown_host or out_of_tries


@dataclass(frozen=True)
class FetchPolicy:
    """Limits of all attempts. Times are in seconds."""

    seconds: float  # for all attempts together
    stall_seconds: float
    retries: int
    retry_wait: float
    retry_after: float
    workers: int
    fetch: FetchConfig


def classify_failure(message: str) -> str:
    """Return the outcome for the raw message of a failure."""
    lower = message.lower()
    if lower.startswith("http error "):
        code = lower.removeprefix("http error ")[:3]
        return HTTP_OUTCOMES.get(code, "server_error" if code.startswith("5") else "other")
    for outcome, signs in FAILURE_SIGNS.items():
        if any(sign in lower for sign in signs):
            return outcome
    return "other"


class Attempts:
    """The attempts at a set of rows."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder, self.clock, self.sleep = folder, clock, sleep
        self.folder.mkdir(parents=True, exist_ok=True)

    def folders(self) -> list[Path]:
        """Return the folders of the attempts, oldest first."""
        return sorted(self.folder.glob("a[0-9]*"))

    def read_results(self, rows: Iterable[int]) -> dict[int, FetchResult]:
        """Return the results of these rows so far."""
        requested = set(rows)
        results: dict[int, FetchResult] = {}
        for attempt in self.folders():
            for tar in sorted(attempt.glob("out/*.tar")):
                for row, offset, size in _list_bodies(tar):
                    if row in requested:
                        results[row] = FetchResult("ok", None, str(tar), offset, size)
            for table in sorted(attempt.glob("out/*.parquet")):
                for row, message in _list_failures(table):
                    earlier = results.get(row)
                    if row in requested and (earlier is None or earlier.status != "ok"):
                        tries = 1 if earlier is None else earlier.tries + 1
                        results[row] = FetchResult(classify_failure(message), message, tries=tries)
        return results

    def fetch_all(self, urls: dict[int, str], policy: FetchPolicy, progress: bool) -> dict[int, FetchResult]:
        """Return a result for every row, given the URLs by row.

        Each row is fetched once; then temporary failures are retried, with a longer wait before each attempt.
        """
        deadline, wait = self.clock() + policy.seconds, policy.retry_wait
        fruitless = 0  # consecutive attempts without a new result
        end: FetchEnd = "done"
        results = self.read_results(urls)
        while end != "late":
            rows = [(row, url) for row, url in urls.items() if row not in results]
            title = "fetch" if rows else "fetch again"
            if rows and fruitless > (1 if len(rows) > MIN_PROCESSES_AFTER_STALL else 0):
                break
            if not rows:
                rows = [(row, url) for row, url in urls.items() if not results[row].is_final(policy)]
                pause = max([wait, *(results[row].retry_after for row, _ in rows)])
                if not rows or fruitless or self.clock() + pause > deadline:
                    break
                self.sleep(pause)
                wait *= 2
            with ProgressDisplay(title, len(rows), unit="rows", shown=progress) as display:
                report = _report_to(display)
                end = self.run_attempt(rows, policy, deadline, report, after_stall=end == "stalled")
            new_results = self.read_results(urls)
            if len(new_results) < len(urls):
                self._require_space()
            fruitless = 0 if new_results != results else fruitless + 1
            results = new_results
            if end == "died" and fruitless:
                log = f"{self.folders()[-1]}/log.txt"
                raise FetchError(f"img2dataset ended early: {self.last_log_line()} ({log})")
        reason = f"no progress for {policy.stall_seconds:g} s"
        if end == "late":
            reason = f"not fetched within {policy.seconds:g} s"
        return {row: results.get(row, FetchResult("timeout", f"no answer, and {reason}")) for row in urls}

    def run_attempt(
        self,
        rows: list[tuple[int, str]],
        policy: FetchPolicy,
        deadline: float,
        report: Callable[[int], None],
        after_stall: bool = False,
    ) -> FetchEnd:
        """Make one attempt at (row, URL) pairs; return how it ended. Its results are on disk.

        `report` is called with the number of finished rows. `after_stall` spreads the rows over more processes and
        tars: failures are on disk only once their tar is complete, so a row that stalls then holds up fewer others.
        """
        number = len(self.folders())
        # Prepared under another name, so that a kill leaves no attempt without its input.
        folder, prepared = self.folder / f"a{number:03d}", self.folder / f"making-a{number:03d}"
        shutil.rmtree(prepared, ignore_errors=True)
        if number:  # in another order of hosts
            rows = random.Random(number).sample(rows, len(rows))
        if after_stall:
            processes = max(MIN_PROCESSES_AFTER_STALL, policy.workers)
            tars = 16 * processes
        else:
            processes = max(1, min(policy.workers, len(rows) // ROWS_PER_PROCESS))
            tars = 2 * processes if len(rows) >= 4 * processes * ROWS_PER_PROCESS else processes
        uids, urls = zip(*rows, strict=True)
        table = pa.table({"uid": pa.array(uids, pa.int64()), "url": pa.array(urls, pa.string())})
        write_table(prepared / "urls.parquet", table)
        settings = replace(
            policy.fetch,
            urls=str(folder / "urls.parquet"),
            out=str(folder / "out"),
            rows_per_tar=min(10_000, -(-len(rows) // tars)),
            processes=processes,
        )
        settings.write(prepared / "fetch.json")
        (prepared / "out").mkdir()
        prepared.rename(folder)
        return run_fetcher(folder, policy.stall_seconds, deadline, report, self.clock)

    def _require_space(self) -> None:
        """Raise OSError if the disk is full, or was during the last attempt."""
        log = read_tail(self.folders()[-1] / "log.txt", 1 << 20).decode(errors="replace")
        for number in DISK_FULL_ERRNOS:
            if os.strerror(number) in log:
                raise OSError(number, os.strerror(number), str(self.folder))
        if shutil.disk_usage(self.folder).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def last_log_line(self) -> str:
        try:
            lines = (self.folders()[-1] / "log.txt").read_text(errors="replace").strip().splitlines()
        except (OSError, IndexError):
            return ""
        return lines[-1].strip()[:300] if lines else ""


def _report_to(display: ProgressDisplay) -> Callable[[int], None]:
    """Return a function that moves the display to a number of finished rows."""

    def report(finished: int) -> None:
        display.advance(finished - display.done, finished - display.done)

    return report


# ---------------------------------------------------------------------------------------------------- output


def _list_bodies(tar: Path) -> list[tuple[int, int, int]]:
    """Return (row, offset, size) of the complete bodies in a tar that may be cut short anywhere."""
    bodies, body = [], None
    with open(tar, "rb") as file:
        # Each sample is key.jpg, whatever the body is, followed by key.json.
        for member in walk_tar(file, []):
            if not member.complete:
                break
            if member.name.endswith(".jpg"):
                body = member
            elif body is not None and member.name == body.name.removesuffix(".jpg") + ".json":
                file.seek(member.offset)
                with suppress(ValueError):  # zeros, after a crash of the machine
                    bodies.append((json.loads(file.read(member.size))["uid"], body.offset, body.size))
    return bodies


def _list_failures(table: Path) -> list[tuple[int, str]]:
    """Return (row, message) of the failed rows; none if the table is incomplete."""
    try:
        content = pq.read_table(table, columns=["uid", "status", "error_message"])
    except (pa.ArrowInvalid, OSError):
        return []
    rows = zip(*(content[name].to_pylist() for name in content.column_names), strict=True)
    return [(uid, message or status) for uid, status, message in rows if status != "success"]
