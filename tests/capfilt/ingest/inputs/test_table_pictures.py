"""Tables with pictures are read a few rows at a time, and each row group once."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing import pack_folder, pictures_of
from web import picture

from capfilt.ingest.inputs import table_pictures


def test_a_large_row_group_is_not_loaded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"jpg": [os.urandom(50_000) for _ in range(400)]})
    layout = {"use_dictionary": False, "compression": "none", "write_batch_size": 10}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=400, **layout)
    sizes: list[int] = []

    class Watched(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            sizes.append(size)
            return super().read(size)

    monkeypatch.setattr(table_pictures, "open_read", Watched)
    cells = list(table_pictures.open_columns(str(tmp_path / "a.parquet"), ["jpg"]))
    assert [cell for (cell,) in cells] == table["jpg"].to_pylist()
    assert max(sizes) < 4 << 20


@pytest.mark.parametrize("broken", [False, True])
def test_a_row_group_is_read_once_for_many_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """Reading it from its start for every shard would take time quadratic in its rows."""
    cells = [picture(number) for number in range(60)]
    pq.write_table(pa.table({"jpg": cells}), tmp_path / "a.parquet")
    starts: list[int] = []
    read_from = table_pictures.ParquetColumns._read_from

    def watched(self: table_pictures.ParquetColumns, row: int) -> Iterator[tuple[Any, ...]]:
        starts.append(row)
        for number, found in enumerate(read_from(self, row), row):
            if broken and number == 25 and len(starts) == 1:
                raise ValueError("damaged for once")
            yield found

    monkeypatch.setattr(table_pictures.ParquetColumns, "_read_from", watched)
    assert pack_folder(tmp_path / "a.parquet", tmp_path / "data", shard_size=10)["ok"] == 60
    assert starts == ([0, 20] if broken else [0])  # the shard that failed is read again
    assert [sample.image for sample in pictures_of(tmp_path / "data")] == cells
