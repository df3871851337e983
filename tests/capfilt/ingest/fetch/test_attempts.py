"""Attempts continue until each row has a result; only temporary failures are retried."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.ingest.fetch.attempts import Attempts, FetchError, FetchPolicy, FetchResult, classify_failure
from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import FetchLimits
from capfilt.ingest.fetch.supervisor import FetchEnd
from capfilt.ingest.shard_writer import OUTCOMES

FETCH = FetchConfig(threads=1, timeout=1, user_agent="", limits=FetchLimits(1, 1, True))
GONE = "HTTP Error 404: Not Found"
BUSY = "HTTP Error 503: Service Unavailable"


def policy(**settings: Any) -> FetchPolicy:
    defaults: dict[str, Any] = {"seconds": 1000, "stall_seconds": 10, "retries": 2, "retry_wait": 5, "retry_after": 60}
    return FetchPolicy(**{**defaults, "workers": 1, "fetch": FETCH, **settings})


class FakeAttempts(Attempts):
    """Attempts whose fetcher is a list of what each attempt writes and how it ends. Time passes by sleeping alone."""

    def __init__(self, folder: Path, *script: tuple[dict[int, str | None], FetchEnd]) -> None:
        super().__init__(folder, lambda: self.now, self.pass_time)
        self.now, self.script = 0.0, list(script)
        self.sleeps: list[float] = []
        self.calls: list[tuple[list[int], bool]] = []  # rows, and whether the attempt before has stalled

    def pass_time(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def run_attempt(
        self,
        rows: list[tuple[int, str]],
        policy: FetchPolicy,
        deadline: float,
        report: Callable[[int], None],
        after_stall: bool = False,
    ) -> FetchEnd:
        self.calls.append(([row for row, _ in rows], after_stall))
        results, end = self.script.pop(0)
        folder = self.folder / f"a{len(self.folders()):03d}"
        (folder / "out").mkdir(parents=True)
        (folder / "log.txt").write_text("first line\nlast line\n")
        bodies = [row for row, message in results.items() if message is None]
        with tarfile.open(folder / "out" / "00000.tar", "w") as tar:
            for row in bodies:
                for name, data in ((f"{row}.jpg", b"x"), (f"{row}.json", b'{"uid": %d}' % row)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        failures = [{"uid": row, "status": "failed_to_download", "error_message": m} for row, m in results.items() if m]
        schema = pa.schema([("uid", pa.int64()), ("status", pa.string()), ("error_message", pa.string())])
        pq.write_table(pa.Table.from_pylist(failures, schema=schema), folder / "out" / "00000.parquet")
        report(len(results))
        return end


def fetch(attempts: Attempts, rows: int, **settings: Any) -> dict[int, tuple[str, int]]:
    urls = {row: f"http://x/{row}" for row in range(rows)}
    results = attempts.fetch_all(urls, policy(**settings), progress=False)
    return {row: (result.status, result.tries) for row, result in results.items()}


def test_temporary_failures_are_retried_after_growing_waits(tmp_path: Path) -> None:
    attempts = FakeAttempts(
        tmp_path, ({0: None, 1: GONE, 2: BUSY, 3: BUSY}, "done"), ({2: None, 3: BUSY}, "done"), ({3: BUSY}, "done")
    )
    assert fetch(attempts, 4) == {0: ("ok", 1), 1: ("not_found", 1), 2: ("ok", 1), 3: ("server_error", 3)}
    assert [rows for rows, _ in attempts.calls] == [[0, 1, 2, 3], [2, 3], [3]]
    assert attempts.sleeps == [5, 10]


def test_a_retry_waits_as_long_as_the_server_asks(tmp_path: Path) -> None:
    attempts = FakeAttempts(tmp_path, ({0: f"{BUSY} (Retry-After: 40)"}, "done"), ({0: None}, "done"))
    assert fetch(attempts, 1) == {0: ("ok", 1)}
    assert attempts.sleeps == [40]


def test_no_retry_is_made_after_the_deadline(tmp_path: Path) -> None:
    attempts = FakeAttempts(tmp_path, ({0: BUSY}, "done"))
    assert fetch(attempts, 1, seconds=4) == {0: ("server_error", 1)}
    assert attempts.sleeps == []


def test_rows_of_a_killed_attempt_are_fetched_again(tmp_path: Path) -> None:
    attempts = FakeAttempts(tmp_path, ({0: None}, "stalled"), ({1: None}, "done"))
    assert fetch(attempts, 2) == {0: ("ok", 1), 1: ("ok", 1)}
    assert attempts.calls == [([0, 1], False), ([1], True)]


def test_a_row_that_never_ends_is_a_timeout(tmp_path: Path) -> None:
    stalled = FakeAttempts(tmp_path / "stalled", ({0: None}, "stalled"), ({}, "stalled"))
    results = stalled.fetch_all({0: "http://x", 1: "http://y"}, policy(), progress=False)
    assert (results[1].status, results[1].error) == ("timeout", "no answer, and no progress for 10 s")
    late = FakeAttempts(tmp_path / "late", ({0: None}, "late"))
    results = late.fetch_all({0: "http://x", 1: "http://y"}, policy(), progress=False)
    assert (results[1].status, results[1].error) == ("timeout", "no answer, and not fetched within 1000 s")


def test_a_fetcher_that_dies_without_any_result_is_an_error(tmp_path: Path) -> None:
    attempts = FakeAttempts(tmp_path, ({}, "died"))
    with pytest.raises(FetchError, match=r"img2dataset ended early: last line \(.*a000/log.txt\)"):
        fetch(attempts, 1)


def test_an_attempt_prepared_by_a_killed_run_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "making-a000").mkdir()
    (tmp_path / "making-a000" / "urls.parquet").write_bytes(b"half")
    monkeypatch.setattr("capfilt.ingest.fetch.attempts.run_fetcher", lambda *_: "done")
    attempts = Attempts(tmp_path)
    assert attempts.folders() == []
    assert attempts.run_attempt([(7, "http://x")], policy(), 1000, lambda _: None) == "done"
    (folder,) = attempts.folders()
    assert pq.read_table(folder / "urls.parquet").to_pylist() == [{"uid": 7, "url": "http://x"}]
    assert FetchConfig.read(folder / "fetch.json").urls == str(folder / "urls.parquet")
    assert not (tmp_path / "making-a000").exists()


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("HTTP Error 404: Not Found", "not_found"),
        ("HTTP Error 451: Unavailable For Legal Reasons", "forbidden"),
        ("HTTP Error 429: Too Many Requests", "rate_limited"),
        ("HTTP Error 408: Request Timeout", "timeout"),
        ("HTTP Error 503: Service Unavailable", "server_error"),
        ("HTTP Error 400: Bad Request", "other"),
        ("<urlopen error [Errno -2] Name or service not known>", "connection"),
        ("<urlopen error [Errno 111] Connection refused>", "connection"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "connection"),
        ("HTTP Error 429: not requested, the host is paused (Retry-After: 60)", "rate_limited"),
        ("HTTP Error 503: Service Unavailable (Retry-After: 60)", "server_error"),
        ("tdm-reservation: 1", "opted_out"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error timed out>", "timeout"),
        ("<urlopen error unknown url type: ftp>", "bad_url"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out"),
        ("something new", "other"),
    ],
)
def test_messages_become_outcomes(message: str, outcome: str) -> None:
    assert classify_failure(message) == outcome
    assert outcome in OUTCOMES


def test_results_that_are_not_retried() -> None:
    patient = policy(retries=2, retry_after=60)
    assert not FetchResult("timeout", "timed out", tries=2).is_final(patient)
    assert FetchResult("timeout", "timed out", tries=3).is_final(patient)
    assert FetchResult("not_found", GONE).is_final(patient)
    assert FetchResult("connection", "<urlopen error [Errno -2] Name or service not known>").is_final(patient)
    assert not FetchResult("rate_limited", "HTTP Error 429: Too Many Requests (Retry-After: 60)").is_final(patient)
    assert FetchResult("rate_limited", "HTTP Error 429: Too Many Requests (Retry-After: 61)").is_final(patient)


def test_samples_zeroed_by_a_crash_are_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "a000" / "out").mkdir(parents=True)
    with tarfile.open(tmp_path / "a000" / "out" / "00000.tar", "w") as tar:
        for name, data in (("0.jpg", b"x"), ("0.json", bytes(9)), ("1.jpg", b"y"), ("1.json", b'{"uid": 1}')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    results = Attempts(tmp_path).read_results([0, 1])
    assert {row: result.status for row, result in results.items()} == {1: "ok"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def run_fetcher(folder: Path, *_: object) -> FetchEnd:
        (folder / "log.txt").write_text(f"shard 0 failed with error [Errno {number}] {os.strerror(number)}\n")
        return "done"

    monkeypatch.setattr("capfilt.ingest.fetch.attempts.run_fetcher", run_fetcher)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        fetch(Attempts(tmp_path), 1)
    assert caught.value.filename == str(tmp_path)
