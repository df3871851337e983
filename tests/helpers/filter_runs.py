"""`capfilt caption` and `capfilt filter` on a CPU, and the rows of the tables that they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from folders import rows_of

from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards


def run(data: Path, model: Path | None, **options: Any) -> dict[str, Any]:
    """Filter a shard set and return the summary."""
    options = {"model": None if model is None else str(model), "dtype": "fp32"} | options
    return filter_shards(FilterConfig(data=str(data), device="cpu", **options), progress=False)


def caption(data: Path, model: Path, **options: Any) -> None:
    """Caption a shard set."""
    caption_shards(CaptionConfig(str(data), str(model), device="cpu", **options), progress=False)


def rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the filtered set of a summary."""
    return rows_of(Path(summary["out"]))


def scores(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the scores of a summary."""
    return rows_of(Path(summary["scores"]))
