"""The supervisor counts finished rows from the output of img2dataset, and ends a fetcher that stalls."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import FetchLimits
from capfilt.ingest.fetch.supervisor import START_SECONDS, OutputProgress, fetcher_variables, run_fetcher


def tar_of(rows: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in rows:
            for name, data in ((f"{row}.jpg", bytes(700)), (f"{row}.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_rows_are_counted_while_their_tar_grows(tmp_path: Path) -> None:
    progress, content = OutputProgress(tmp_path), tar_of(range(3))
    assert progress.update() == 0 and not progress.started
    for size, rows in ((100, 0), (512 + 700, 0), (512 + 1024, 1), (5 * 512 + 512 + 1024, 2), (len(content), 3)):
        (tmp_path / "00000.tar").write_bytes(content[:size])
        assert progress.update() == size
        assert progress.rows == rows, size
    assert progress.started


def test_the_statistics_of_a_complete_tar_count_its_failures_too(tmp_path: Path) -> None:
    progress = OutputProgress(tmp_path)
    (tmp_path / "00000.tar").write_bytes(tar_of(range(3)))
    (tmp_path / "00001.tar").write_bytes(tar_of(range(2)))
    (tmp_path / "00001_stats.json").write_text("{")  # half written
    progress.update()
    assert progress.rows == 5
    (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 10}))
    progress.update()
    assert progress.rows == 12


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, download: str) -> Path:
    """Write an attempt whose img2dataset is this function body."""
    (folder / "site").mkdir()
    (folder / "site" / "img2dataset.py").write_text(f"import os, time\n\ndef download(**options):\n    {download}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))
    attempt = folder / "a000"
    (attempt / "out").mkdir(parents=True)
    limits = FetchLimits(1, 1.0, False)
    config = FetchConfig(threads=1, timeout=1, user_agent="", limits=limits, out=str(attempt / "out"))
    config.write(attempt / "fetch.json")
    return attempt


def fast_clock(seconds_per_call: float) -> Callable[[], float]:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds_per_call
        return now

    return clock


@pytest.mark.parametrize(("download", "end"), [("print(1)", "done"), ("raise ValueError('broken')", "died")])
def test_a_fetcher_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: str, end: str) -> None:
    attempt = prepare(tmp_path, monkeypatch, download)
    reports: list[int] = []
    assert run_fetcher(attempt, 1000, 1e9, reports.append) == end
    assert reports[-1] == 0
    assert ("ValueError: broken" in (attempt / "log.txt").read_text()) == (end == "died")


@pytest.mark.parametrize(
    ("seconds_per_look", "deadline", "end"), [(START_SECONDS, 1e9, "stalled"), (1.0, START_SECONDS / 30, "late")]
)
def test_a_fetcher_without_progress_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds_per_look: float, deadline: float, end: str
) -> None:
    attempt = prepare(tmp_path, monkeypatch, "time.sleep(1000)")
    assert run_fetcher(attempt, 10, deadline, lambda rows: None, fast_clock(seconds_per_look)) == end


def test_installed_packages_do_not_precede_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/more")
    assert fetcher_variables(Path("/src/capfilt"))["PYTHONPATH"] == os.pathsep.join(["/src/capfilt", "/more"])
    assert "PYTHONPATH" not in fetcher_variables(Path("/venv/lib/python3.13/site-packages"))
