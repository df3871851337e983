"""The benchmark of downloading and packing runs, and all commands store every picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import download
import pytest


def test_pictures_are_distinct_and_have_the_size_of_a_web_picture() -> None:
    pictures = [download.draw_picture(number, 640) for number in range(3)]
    assert len(set(pictures)) == 3
    assert all(50_000 < len(data) < 90_000 for data in pictures)


@pytest.mark.slow
def test_the_benchmark_prints_a_ratio_for_each_command() -> None:
    command = [sys.executable, str(Path(download.__file__)), "--pictures", "20", "--processes", "1", "--rounds", "1"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| capfilt")]
    assert len(rows) == 3
    assert all(float(row[3]) > 0 for row in rows)
