"""Splits an input into plans: a table per shard with the texts of each picture and the place of its bytes."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from blipcore.io.writing import write_json
from capfilt.ingest.keep_columns import FurtherColumns
from capfilt.shards.format import IMAGES
from capfilt.shards.further_columns import as_json, cast_cells
from capfilt.shards.tables import read_table, write_table

NO_COLUMNS = pa.schema([])
ROWS_FOLDER = "rows"  # subfolder of the staging folder: the input, split into a table per shard
COUNT_FILE = "count.json"  # exists once the whole input has been read
# The bytes of a row with `status` "ok" are in the file `body`: with a `column`, in the table's cell at row `offset`;
# with an `offset` only, `size` bytes from there; otherwise the whole file. A row with a `sha256` is stored unchanged.
# Further columns of the input follow, see keep_columns.py.
PLAN_SCHEMA = pa.schema(
    [
        *IMAGES,
        ("more", pa.list_(pa.string())),
        ("more_columns", pa.list_(pa.string())),  # of each of `more`: the further columns of its row, as JSON
        ("checksum", pa.string()),  # hex digest of the bytes, given by the input
        ("body", pa.binary()),  # file names need not be valid text
        ("column", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("orientation", pa.int8()),  # EXIF orientation of a picture that has lost its EXIF
    ]
)


def plan_schema(further: Iterable[pa.Field]) -> pa.Schema:
    """Return the schema of a plan with these further columns."""
    return pa.schema([*PLAN_SCHEMA, *further])


@dataclass(frozen=True)
class SplitInput:
    """The input as a table per shard in the staging folder."""

    rows: int
    more: int = 0  # texts after the first of a picture
    further: pa.Schema = NO_COLUMNS  # further columns of the input, in their final types
    first_shard: int = 0  # earlier ones exist


def split_rows(
    staging: Path,
    rows: Iterable[dict[str, Any]],
    schema: pa.Schema,
    shard_size: int,
    further: FurtherColumns,
    first_shard: int = 0,
) -> SplitInput:
    """Write the input as a table per shard from `first_shard` on, unless an earlier run has.

    Raises ValueError if `further` names a column that no row has.
    """
    folder = staging / ROWS_FOLDER
    if not (folder / COUNT_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        shard, total, more = first_shard, 0, 0
        rows = iter(rows)
        while part := list(islice(rows, shard_size)):
            for number, row in enumerate(part, shard * shard_size):
                row["key"] = sample_key(number, shard_size)
            columns = further.take(part)
            table = pa.Table.from_pylist(part, schema=schema)
            for name in columns.column_names:
                table = table.append_column(name, columns[name])
            write_table(folder / f"{shard:05d}.parquet", table)
            shard, total = shard + 1, total + len(part)
            more += sum(len(row.get("more") or ()) for row in part)
        types = base64.b64encode(further.schema().serialize()).decode() if total else ""
        further.report()
        counts = {"rows": total, "more": more, "further": types, "first_shard": first_shard}
        write_json(folder / COUNT_FILE, counts)
    counts = json.loads((folder / COUNT_FILE).read_text())
    types = counts.get("further")
    columns = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(types))) if types else NO_COLUMNS
    return SplitInput(counts["rows"], counts["more"], columns, counts.get("first_shard", 0))


def read_part(path: Path, further: pa.Schema) -> pa.Table:
    """Read a table of `split_rows`, with its further columns in their final types; null where the part has none."""
    table = read_table(path)
    own = table.select([name for name in table.column_names if name not in further.names])
    for field in further:
        missing = field.name not in table.column_names
        cells = pa.nulls(len(table), field.type) if missing else cast_cells(table[field.name], field.type)
        own = own.append_column(field, cells)
    return own


def group_by_url(rows: Iterable[dict[str, Any]], keep: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield consecutive rows with the same URL as one row, with the texts of the others in "more".

    Their further columns, or those in `keep`, go with the texts, in "more_columns". Rows without a URL or with a status
    stay as they are.
    """
    for url, group in groupby(rows, key=lambda row: row["url"] if row["url"] and not row.get("status") else object()):
        first, *others = group
        if isinstance(url, str):
            more = list(first.get("more") or ())
            columns: list[str | None] = [None] * len(more)
            for row in others:
                texts = [text for text in (row["caption"], *(row.get("more") or ())) if text is not None]
                more += texts
                columns += [filled_cells(row.get("columns"), keep)] * len(texts)
            if others and first["caption"] is None and more:
                first["caption"], *more = more
                del columns[0]
            first |= {"more": more, "more_columns": columns if any(columns) else None}
        yield first


def sample_key(row: int, shard_size: int) -> str:
    """Return img2dataset's key of an input row: the number of its shard, then its index in the shard."""
    digits = len(str(shard_size - 1)) if shard_size > 1 else 0
    shard, index = divmod(row, shard_size)
    return f"{shard * 10**digits + index:0{digits + 5}d}"


def filled_cells(columns: Mapping[str, Any] | None, keep: Sequence[str] = ()) -> str | None:
    """Return those further columns of a row that have a value, as JSON; None if there are none. `keep` names some."""
    kept = {name: cell for name, cell in (columns or {}).items() if cell is not None and (not keep or name in keep)}
    text = as_json(kept or None)  # JSON may hold half of a surrogate pair, which no table can store
    return None if text is None else text.encode("utf-8", errors="replace").decode("utf-8")
