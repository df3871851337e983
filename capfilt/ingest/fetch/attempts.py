"""Rows to fetch in, an answer for each out: attempts with img2dataset inside a private folder.

    a000/{urls.parquet, fetch.json, log.txt, out/00000.tar, out/00000.parquet, ...}

Every attempt runs the fetcher in a child process. What an attempt has written counts even when it was
killed: the tars hold the bodies with their row numbers, the sidecar tables the failures. Nothing is believed because
img2dataset returned, only because the answer for a row lies there.
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
from blipcore.io.tars import walk_tar
from blipcore.io.storage import DISK_FULL_ERRNOS
from capfilt.engine.progress import ProgressDisplay
from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import PRIVATE, RESERVED, RETRY_AFTER, TOO_LARGE, TOO_SLOW
from capfilt.ingest.fetch.supervisor import run_fetcher
from capfilt.shards.tables import write_table

RETRYABLE = frozenset({"timeout", "connection", "rate_limited", "server_error"})
# What a message holds where no such host is known; the numbers are of the system.
UNKNOWN_HOST = tuple(
    f"[Errno {getattr(socket, name)}]" for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)
ROWS_PER_PROCESS = 500  # rows that are worth a process of their own: starting one takes a second
MIN_PROCESSES_AFTER_STALL = 4  # processes at least when some rows stall: the others go on beside those


class FetchError(RuntimeError):
    """img2dataset does not run; nothing of it is the fault of a URL."""


@dataclass
class FetchResult:
    """What became of a row: `status` "ok" and where the body lies, or an outcome and the raw message."""

    status: str
    error: str | None = None
    tar: str | None = None
    offset: int = 0
    size: int = 0
    tries: int = 1

    @property
    def rest(self) -> float:
        """Seconds that the server wants to be left alone for."""
        found = re.search(rf"{RETRY_AFTER} (\d+)", self.error or "")
        return float(found.group(1)) if found else 0.0

    def final(self, asking: FetchPolicy) -> bool:
        """Whether asking again is of no use, has been done often enough, or would have to wait for too long."""
        gone = any(sign in (self.error or "") for sign in UNKNOWN_HOST)
        return self.status not in RETRYABLE or gone or self.tries > asking.retries or self.rest > asking.retry_after


@dataclass(frozen=True)
class FetchPolicy:
    """How to ask, and how often."""

    seconds: float  # wall clock of all the passes
    stall_seconds: float
    retries: int
    retry_wait: float
    retry_after: float
    workers: int
    fetch: FetchConfig


def classify_failure(message: str) -> str:
    """The outcome behind a failure's raw message."""
    low = message.lower()
    if low.startswith("http error "):
        code = low.removeprefix("http error ")[:3]
        known = {"404": "not_found", "410": "not_found", "401": "forbidden", "403": "forbidden", "451": "forbidden"}
        known |= {"429": "rate_limited", "408": "timeout"}
        return known.get(code, "server_error" if code.startswith("5") else "other")
    for outcome, words in (
        ("opted_out", ("x-robots-tag", RESERVED)),
        ("bad_url", (PRIVATE, "unknown url type", "no host given", "url can't contain", "nonnumeric port")),
        ("too_large", (TOO_LARGE,)),
        ("timeout", (TOO_SLOW, "timed out", "timeout")),
        (
            "connection",
            ("urlopen error", "connection", "errno", "incompleteread", "remote end closed", "ssl", "name resolution"),
        ),
        ("connection", ("badstatusline", "name or service", "broken pipe", "reset by peer", "line too long")),
    ):
        if any(word in low for word in words):
            return outcome
    return "other"


class Attempts:
    """The attempts at one set of rows."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def attempts(self) -> list[Path]:
        return sorted(self.folder.glob("a[0-9]*"))

    def answers(self, wanted: Iterable[int]) -> dict[int, FetchResult]:
        """All that the attempts so far know about these rows."""
        wanted, found = set(wanted), {}
        for attempt in self.attempts():
            for tar in sorted(attempt.glob("out/*.tar")):
                for uid, offset, size in _bodies(tar):
                    if uid in wanted:
                        found[uid] = FetchResult("ok", None, str(tar), offset, size)
            for table in sorted(attempt.glob("out/*.parquet")):
                for uid, message in _failures(table):
                    before = found.get(uid)
                    if uid in wanted and (before is None or before.status != "ok"):
                        tries = 1 if before is None else before.tries + 1
                        found[uid] = FetchResult(classify_failure(message), message, tries=tries)
        return found

    def ask(self, urls: dict[int, str], asking: FetchPolicy, progress: bool) -> dict[int, FetchResult]:
        """An answer for every URL by its row: everything once, then what may mend again, with distance in time."""
        deadline, wait = time.monotonic() + asking.seconds, asking.retry_wait
        fruitless, stalled, late = 0, False, False
        answers = self.answers(urls)
        while not late:
            todo = [(row, url) for row, url in urls.items() if row not in answers]
            again = [(row, url) for row, url in urls.items() if row in answers and not answers[row].final(asking)]
            if (not todo and not again) or fruitless > (1 if len(todo) > MIN_PROCESSES_AFTER_STALL else 0):
                break
            title = "fetch" if todo else "fetch again"
            if not todo:
                todo = again
                pause = max(wait, *(answers[row].rest for row, _ in again))
                if time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
                wait *= 2
            with ProgressDisplay(title, len(todo), unit="rows", shown=progress) as display:

                def tick(through: int, display: ProgressDisplay = display) -> None:
                    display.advance(through - display.done, through - display.done)

                ended = self.fetch(todo, asking, deadline, tick, small=stalled)
            news = self.answers(urls)
            if len(news) < len(urls):
                self._require_space()
            fruitless = 0 if news != answers else fruitless + 1
            answers, stalled, late = news, ended == "stalled", ended == "late"
            if ended == "died" and fruitless:
                raise FetchError(f"img2dataset ended early: {self.last_words()} ({self.attempts()[-1]}/log.txt)")
        why = f"not fetched within {asking.seconds:g} s" if late else f"no progress for {asking.stall_seconds:g} s"
        return {row: answers.get(row, FetchResult("timeout", f"no answer, and {why}")) for row in urls}

    def fetch(
        self,
        rows: list[tuple[int, str]],
        asking: FetchPolicy,
        deadline: float,
        tick: Callable[[int], None],
        small: bool = False,
    ) -> str:
        """One attempt at (uid, url) rows; returns "done", "stalled", "late" or "died", and leaves the rest on disk.

        `tick` is told how many rows are known to be through, again and again. `small` pieces keep a row that stalls
        apart from the others, and several processes go on beside it: failures are on disk when their piece has ended.
        """
        number = len(self.attempts())
        # written under another name first, so that a kill leaves no attempt without its input
        place, making = self.folder / f"a{number:03d}", self.folder / f"making-a{number:03d}"
        shutil.rmtree(making, ignore_errors=True)
        if number:  # later passes: hosts in another order than the one that did not work
            rows = random.Random(number).sample(rows, len(rows))
        processes = (
            max(MIN_PROCESSES_AFTER_STALL, asking.workers)
            if small
            else max(1, min(asking.workers, len(rows) // ROWS_PER_PROCESS))
        )
        pieces = processes * (16 if small else 2 if len(rows) >= 4 * processes * ROWS_PER_PROCESS else 1)
        piece = min(10_000, -(-len(rows) // pieces))
        uids, urls = zip(*rows, strict=True)
        table = pa.table({"uid": pa.array(uids, pa.int64()), "url": pa.array(urls, pa.string())})
        write_table(making / "urls.parquet", table)
        settings = replace(
            asking.fetch, urls=str(place / "urls.parquet"), out=str(place / "out"), piece=piece, processes=processes
        )
        settings.write(making / "fetch.json")
        (making / "out").mkdir()
        making.rename(place)
        return run_fetcher(place, asking.stall_seconds, deadline, tick)

    def _require_space(self) -> None:
        """OSError when the disk is full, or was to the latest attempt: then its rows are not the fault of servers."""
        said = read_tail(self.attempts()[-1] / "log.txt", 1 << 20).decode(errors="replace")
        for number in DISK_FULL_ERRNOS:  # the disk, or the user's share of it
            if os.strerror(number) in said:
                raise OSError(number, os.strerror(number), str(self.folder))
        if shutil.disk_usage(self.folder).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def last_words(self) -> str:
        """The last line that the latest attempt's child has printed."""
        try:
            lines = (self.attempts()[-1] / "log.txt").read_text(errors="replace").strip().splitlines()
        except (OSError, IndexError):
            return ""
        return lines[-1].strip()[:300] if lines else ""


# ---------------------------------------------------------------------------------------------------- its output


def _bodies(tar: Path) -> list[tuple[int, int, int]]:
    """(uid, offset, size) of the complete bodies in a tar, which may end anywhere."""
    found, body = [], None
    with open(tar, "rb") as file:
        for member in walk_tar(file, []):  # key.jpg, whatever it holds, then key.json
            if not member.complete:
                break
            if member.name.endswith(".jpg"):
                body = member
            elif body is not None and member.name == body.name.removesuffix(".jpg") + ".json":
                file.seek(member.offset)
                with suppress(ValueError):  # blank: a machine that went down has not written all of it
                    found.append((json.loads(file.read(member.size))["uid"], body.offset, body.size))
    return found


def _failures(table: Path) -> list[tuple[int, str]]:
    """(uid, message) of the rows that failed; none where the table was never finished."""
    try:
        content = pq.read_table(table, columns=["uid", "status", "error_message"])
    except (pa.ArrowInvalid, OSError):
        return []
    rows = zip(*(content[name].to_pylist() for name in content.column_names), strict=True)
    return [(uid, message or status) for uid, status, message in rows if status != "success"]
