"""Contents of folders, for tests that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capfilt.shards.tables import read_table


def contents(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all tables in a folder, in the order of the shards."""
    return [row for table in sorted(folder.glob("*.parquet")) for row in read_table(table).to_pylist()]
