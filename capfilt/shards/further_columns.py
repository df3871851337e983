"""Further columns: those of an input that are stored with its pictures, such as uid, similarity, NSFW or licence.

They are typed columns of a shard's own table, fields of the samples' JSON, and columns of filtered tables and exports.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath, existing_paths
from capfilt.shards.format import CAPTIONS, IMAGES, SCORES, VERDICT
from capfilt.shards.manifest import read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_schema

# Names of our tables, of plans, of exports, and of fields of a sample that readers take for its text or picture.
OUR_NAMES = frozenset([*IMAGES.names, *CAPTIONS.names, *SCORES.names, *VERDICT.names])
OUR_NAMES |= {"more", "body", "column", "offset", "size", "orientation", "checksum", "image", "image_id"}
OUR_NAMES |= {"captions", "txt", "texts", "jpg", "json"}
OUR_PATTERN = re.compile(r"(itm|itc|clip\d*|caption)(_.*)?")
# Columns of img2dataset's tables that stay there: they describe the download.
STAY = frozenset([*IMAGES.names, "error_message", "exif"])
PREFIX = "input_"  # of a name that clashes


def rename_clashes(names: Iterable[str], taken: Iterable[str] = (), *, ours: bool = True) -> dict[str, str]:
    """Return name -> name in our tables: with PREFIX if it is taken, equals another, or with `ours` is a name of ours.

    Names that differ in case only are equal, because readers such as DuckDB ignore case.
    """
    used = {name.lower() for name in taken}
    renamed: dict[str, str] = {}
    for name in names:
        lower, stored = name.lower(), name
        if ours and (lower in OUR_NAMES or OUR_PATTERN.fullmatch(lower) or not name.strip()):
            stored = PREFIX + name
        while stored.lower() in used:
            stored = PREFIX + stored
        used.add(stored.lower())
        renamed[name] = stored
    return renamed


def json_value(value: Any) -> Any:
    """Return a cell as a value that JSON has: dates and decimals as strings, NaN and infinity as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)


# ---------------------------------------------------------------------------------------------------- types


def plain_type(data_type: pa.DataType) -> pa.DataType | None:
    """Return the type in which a column is stored: string, number, time, list or struct; None for bytes."""
    types = pa.types
    if types.is_dictionary(data_type):
        return plain_type(data_type.value_type)
    if types.is_binary(data_type) or types.is_large_binary(data_type) or types.is_fixed_size_binary(data_type):
        return None
    if types.is_list(data_type) or types.is_large_list(data_type) or types.is_fixed_size_list(data_type):
        inner = plain_type(data_type.value_type)
        return None if inner is None else pa.list_(inner)
    if types.is_struct(data_type):
        fields = [(field.name, plain_type(field.type)) for field in data_type]
        if not fields:  # which Parquet cannot hold
            return pa.string()
        return pa.struct(fields) if all(inner is not None for _, inner in fields) else None
    if types.is_boolean(data_type) or types.is_integer(data_type) or types.is_floating(data_type):
        return data_type
    return data_type if types.is_temporal(data_type) or types.is_decimal(data_type) else pa.string()


def unify_types(types: Iterable[pa.DataType]) -> pa.DataType:
    """Return a type that holds the values of all types; string, for JSON, if no other does."""
    different = list(dict.fromkeys(data_type for data_type in types if not pa.types.is_null(data_type)))
    if not different:
        return pa.string()
    try:
        schemas = [pa.schema([("x", data_type)]) for data_type in different]
        unified = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()
    return plain_type(unified) or pa.string()


def cast_cells(cells: pa.Array | pa.ChunkedArray, data_type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Return cells in another type; as JSON if it is string and they are lists, structs or mixed."""
    if cells.type == data_type:
        return cells
    if pa.types.is_string(cells.type) and not pa.types.is_string(data_type):  # numbers of a text file
        cells = pc.if_else(pc.equal(cells, ""), None, cells)
    if pa.types.is_string(data_type) and not pa.types.is_large_string(cells.type):
        return pa.array([as_json(cell) for cell in cells.to_pylist()], pa.string())
    try:
        return cells.cast(data_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array(cells.to_pylist(), data_type)


def as_json(cell: Any) -> str | None:
    """Return a cell as text: a string as it is, anything else as JSON."""
    if cell is None or isinstance(cell, str):
        return cell
    return json.dumps(json_value(cell), ensure_ascii=False)


# ---------------------------------------------------------------------------------------------------- tables


def own_table_columns(schema: pa.Schema) -> list[pa.Field]:
    """Return the further columns of a shard's own table, those of bytes excepted."""
    fields = ((field.name, plain_type(field.type)) for field in schema if field.name.lower() not in STAY)
    return [pa.field(name, data_type) for name, data_type in fields if data_type is not None]


def further_schema(images: ShardSet) -> pa.Schema:
    """Return the further columns of a shard set, in types that hold the values of all its tables."""
    tables = [images.table(shard) for shard in images.shards]
    present = existing_paths(tables)
    tables = [table for table in tables if table in present]
    manifest = read_manifest(images.path)
    if manifest is not None and manifest["stage"] in ("download", "pack"):
        tables = tables[:1]  # all have the same columns
    types: dict[str, list[pa.DataType]] = {}
    with ThreadPoolExecutor(16) as pool:  # a remote footer costs a round trip
        for fields in pool.map(_read_own_columns, tables):
            for field in fields:
                types.setdefault(field.name, []).append(field.type)
    return pa.schema([(name, unify_types(of_column)) for name, of_column in types.items()])


def _read_own_columns(table: AnyPath) -> list[pa.Field]:
    try:
        return own_table_columns(read_schema(table))
    except ValueError:  # a damaged table: its pictures can still be used
        return []


def filtered_columns(schema: pa.Schema) -> pa.Schema:
    """Return the further columns of a filtered table; they follow its verdict."""
    last = schema.names.index(VERDICT.names[-1])
    return pa.schema(list(schema)[last + 1 :])


def score_columns(names: Sequence[str]) -> list[str]:
    """Return the score columns of a filtered table; they stand between its text and its verdict."""
    return list(names[len(SCORES.names) : names.index(VERDICT.names[0])])
