"""Reads and writes Parquet tables whose footers carry counts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.messages import one_line
from blipcore.io.reading import open_read, read_tail
from blipcore.io.storage import AnyPath, Remote
from blipcore.io.writing import atomic_write

ROW_GROUP = 10_000
DAMAGED = "delete it and repeat the command that wrote it"  # remedy for an unreadable table
INPUTS = b"capfilt_inputs"  # of the footer: digests of the tables that this one is made from


def write_table(
    path: AnyPath,
    table: pa.Table,
    counts: dict[str, int] | None = None,
    *,
    make_folder: bool = True,
    inputs: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write Parquet, the same bytes for the same rows.

    `counts` go into the footer, see `sum_footer_counts`, and so do `inputs`, the digests of the tables that this one is
    made from.

    With `make_folder=False` a folder deleted during the run raises an error, instead of a new one with half the tables.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    footer = {} if counts is None else {b"capfilt": json.dumps(counts, sort_keys=True).encode()}
    if inputs:
        footer[INPUTS] = json.dumps(dict(inputs), sort_keys=True).encode()
    with atomic_write(path) as file:
        pq.write_table(
            table.replace_schema_metadata(footer or None), file, compression="zstd", row_group_size=ROW_GROUP
        )


def read_table(path: AnyPath, columns: list[str] | None = None, optional: Iterable[str] = ()) -> pa.Table:
    """Read a table, or only its `columns` and the existing ones of `optional`.

    Raises FileNotFoundError, or ValueError for an unreadable file or a missing column.
    """
    try:
        source: BinaryIO = io.BytesIO(path.read_bytes()) if isinstance(path, Remote) else open_read(path)
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"No table at {path}.") from None
    try:
        with source, pq.ParquetFile(source) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns or () if name not in names]
            if missing:
                raise ValueError(f"{path} has no column '{missing[0]}'; its columns are {', '.join(names)}.")
            selected = None if columns is None else [*columns, *(name for name in optional if name in names)]
            return file.read(columns=selected).replace_schema_metadata(None)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({one_line(error)}); {DAMAGED}.") from None


def read_schema(path: AnyPath) -> pa.Schema:
    """Return the columns of a table. Raises FileNotFoundError, or ValueError for an unreadable file."""
    try:
        with open_read(path) as file:
            return pq.read_schema(file).remove_metadata()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"No table at {path}.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({one_line(error)}); {DAMAGED}.") from None


def read_inputs(path: AnyPath) -> dict[str, str]:
    """Return the digests of the tables that a table was made from, empty if it has none."""
    with open_read(path) as file:
        return json.loads((pq.read_schema(file).metadata or {}).get(INPUTS, b"{}"))


def read_footer_counts(paths: Iterable[AnyPath]) -> list[dict[str, int]]:
    """Return the counts in the footer of each table."""
    with ThreadPoolExecutor(16, thread_name_prefix="counts") as pool:  # a remote footer costs a round trip
        return list(pool.map(_read_footer, paths))


def sum_footer_counts(paths: Iterable[AnyPath]) -> dict[str, int]:
    """Return the sum of the counts in the footers of tables."""
    total: dict[str, int] = {}
    for counts in read_footer_counts(paths):
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _read_footer(path: AnyPath) -> dict[str, int]:
    # pyarrow accepts the tail of a file that holds the whole footer, whose length is in the last 8 bytes.
    tail = read_tail(path)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    schema = pq.read_schema(pa.BufferReader(tail if length <= len(tail) else read_tail(path, length)))
    return json.loads((schema.metadata or {}).get(b"capfilt", b"{}"))
