"""A filtered set and the data of its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filtered_set import filter_set, write_set
from report_page import read_page_data

from capfilt.report.stage import ReportConfig, write_report


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, drawn: Callable) -> Path:
    return filter_set(write_set(tmp_path_factory.mktemp("set") / "data", drawn))


@pytest.fixture(scope="module")
def content(filtered: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("page") / "report.html"
    summary = write_report(ReportConfig(str(filtered), out=str(out), pictures=10))
    assert summary["bytes"] == out.stat().st_size < 5_000_000
    return read_page_data(out)
