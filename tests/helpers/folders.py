"""What lies in a folder, for the tests that compare it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capfilt.shards.tables import read_table


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file in a folder and the folders in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of the tables in a folder, shard after shard."""
    return [row for table in sorted(folder.glob("*.parquet")) for row in read_table(table).to_pylist()]
