"""Reads and writes Parquet tables whose footer carries counts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.reading import open_read, read_tail
from blipcore.io.storage import AnyPath, Remote
from blipcore.io.writing import atomic_write

ROW_GROUP = 10_000


def write_table(
    path: AnyPath, table: pa.Table, counts: dict[str, int] | None = None, *, make_folder: bool = True
) -> None:
    """Write Parquet with the same bytes for the same rows; `counts` travel in its footer, see `read_counts`.

    Without `make_folder` one that was removed during a run does not come back with half of its tables.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    footer = {b"capfilt": json.dumps(counts, sort_keys=True).encode()} if counts is not None else None
    with atomic_write(path) as file:
        pq.write_table(table.replace_schema_metadata(footer), file, compression="zstd", row_group_size=ROW_GROUP)


def read_table(path: AnyPath, columns: list[str] | None = None, optional: Iterable[str] = ()) -> pa.Table:
    """Read a table, or the named columns of it and those of the `optional` ones that it has.

    An unreadable file or a missing column is one ValueError sentence.
    """
    try:
        source = io.BytesIO(path.read_bytes()) if isinstance(path, Remote) else open_read(path)
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"No table at {path}.") from None
    try:
        with source, pq.ParquetFile(source) as file:
            there = file.schema_arrow.names
            missing = [name for name in columns or () if name not in there]
            if missing:
                raise ValueError(f"{path} has no column '{missing[0]}'; it has {', '.join(there)}.")
            wanted = None if columns is None else [*columns, *(name for name in optional if name in there)]
            return file.read(columns=wanted).replace_schema_metadata(None)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({_one_line(error)}).") from None


def counts_of_each(paths: Iterable[AnyPath]) -> list[dict[str, int]]:
    """The counts in the footers of tables."""

    def counts(path: AnyPath) -> dict[str, int]:
        # a reader starts at the end of a file, so that the tail is a Parquet file to it
        tail = read_tail(path)
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        schema = pq.read_schema(pa.BufferReader(tail if footer <= len(tail) else read_tail(path, footer)))
        return json.loads((schema.metadata or {}).get(b"capfilt", b"{}"))

    with ThreadPoolExecutor(16, thread_name_prefix="counts") as pool:  # a remote footer costs a round trip
        return list(pool.map(counts, paths))


def read_counts(paths: Iterable[AnyPath]) -> dict[str, int]:
    """Sum of the counts in the footers of tables: the same however many runs it took to write them."""
    total: dict[str, int] = {}
    for of_table in counts_of_each(paths):
        for name, count in of_table.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
