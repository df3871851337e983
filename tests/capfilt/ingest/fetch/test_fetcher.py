"""The settings of the fetcher are passed in a file."""

from __future__ import annotations

from pathlib import Path

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
