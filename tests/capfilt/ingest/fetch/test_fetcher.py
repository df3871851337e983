"""The settings of the fetcher are passed in a file; its semaphores are removed after a kill."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import SemLock
from pathlib import Path

import pytest

from capfilt.ingest.fetch import fetcher
from capfilt.ingest.fetch.fetcher import FetchConfig
from capfilt.ingest.fetch.safe_opener import FetchLimits


def test_settings_are_written_and_read_as_json(tmp_path: Path) -> None:
    config = FetchConfig(
        threads=8,
        timeout=1.5,
        user_agent="me",
        limits=FetchLimits(5, 1.0, False),
        urls="in",
        out="out",
        rows_per_tar=10,
    )
    config.write(tmp_path / "x.json")
    assert FetchConfig.read(tmp_path / "x.json") == config


@pytest.mark.skipif(not fetcher.SHARED_MEMORY.is_dir(), reason="semaphores are files on Linux only")
def test_semaphores_of_killed_fetchers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for name in ("fetched", "others"):
        prefix = fetcher._semaphore_prefix(tmp_path / name / "a000")
        # as the fetcher does, for the semaphores of img2dataset
        monkeypatch.setitem(multiprocessing.current_process()._config, "semprefix", f"/{prefix}")
        semaphore = SemLock._make_name().removeprefix("/")
        assert semaphore.startswith(prefix)
        files.append(fetcher.SHARED_MEMORY / f"sem.{semaphore}")
        files[-1].touch()
    fetcher.remove_semaphores(tmp_path / "fetched" / "a001")  # the next attempt
    assert [file.exists() for file in files] == [False, True]
    fetcher.remove_semaphores(tmp_path / "others" / "a000")
    assert not files[1].exists()
