"""Labels written by hand, and the target of a threshold on them.

A labels file is CSV, TSV, JSON lines or Parquet with `key` and `match` (1 or 0, true or false, yes or no), and
optionally `source` (default: web) and `index` (default: 0). The labelled texts should be drawn at random.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from blipcore.io.messages import one_line
from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath
from capfilt.shards.format import WEB
from capfilt.shards.tables import read_table

MATCH, NO_MATCH = ("1", "true", "yes"), ("0", "false", "no")
# The columns that identify a text, with their defaults.
_TEXT_COLUMNS = {"key": pa.scalar(None, pa.string()), "source": pa.scalar(WEB), "index": pa.scalar(0, pa.int32())}


def held_out_mask(keys: pa.ChunkedArray) -> np.ndarray:
    """Return a mask of the rows of half of the pictures, drawn by hashes of their keys."""
    key_list = keys.to_pylist()
    order = sorted(set(key_list), key=lambda key: hashlib.blake2b(key.encode()).digest())
    held_out = set(order[1::2])
    return np.array([key in held_out for key in key_list], bool)


def read_labels(path: AnyPath) -> pa.Table:
    """Read a labels file as a table of key, source, index and match (0 or 1), one row per text.

    Raises ValueError or FileNotFoundError.
    """
    table = _read_file(path)
    for name in ("key", "match"):
        if name not in table.column_names:
            raise ValueError(f"{path} has no column '{name}'; its columns are {', '.join(table.column_names)}.")
    values = [str(value).strip().lower().removesuffix(".0") for value in table["match"].to_pylist()]
    for value in values:
        if value not in MATCH + NO_MATCH:
            raise ValueError(f"{path} has the label '{value}'; a label is 1 or 0, true or false, yes or no.")
    columns = {name: pa.repeat(default, table.num_rows) for name, default in _TEXT_COLUMNS.items()}
    for name, default in _TEXT_COLUMNS.items():
        if name in table.column_names:
            try:
                columns[name] = pc.fill_null(table[name].cast(default.type), default)
            except pa.ArrowInvalid as error:
                raise ValueError(f"Cannot read the column '{name}' of {path}: {one_line(error)}.") from None
    if columns["key"].null_count:
        raise ValueError(f"{path} has a label without a key.")
    labels = pa.table({**columns, "match": pa.array([value in MATCH for value in values]).cast(pa.int8())})
    by_text = labels.group_by(list(_TEXT_COLUMNS), use_threads=False).aggregate([("match", "min"), ("match", "max")])
    contradictory = by_text.filter(pc.not_equal(by_text["match_min"], by_text["match_max"])).to_pylist()
    if contradictory:
        text = " ".join(str(contradictory[0][name]) for name in _TEXT_COLUMNS)
        raise ValueError(f"{path} labels {text} both 1 and 0; remove one of the two labels.")
    return by_text.select([*_TEXT_COLUMNS, "match_min"]).rename_columns([*_TEXT_COLUMNS, "match"])


def _read_file(path: AnyPath) -> pa.Table:
    suffix = path.name.rpartition(".")[2].lower()
    try:
        if suffix == "parquet":
            return read_table(path)
        if suffix in ("csv", "tsv"):
            # Keys such as 00012 must not become numbers.
            conversion = pa.csv.ConvertOptions(
                column_types=dict.fromkeys(("key", "source", "match"), pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            )
            parsing = pa.csv.ParseOptions(delimiter="\t" if suffix == "tsv" else ",")
            return pa.csv.read_csv(open_read(path), parse_options=parsing, convert_options=conversion)
        if suffix in ("jsonl", "ndjson", "json"):
            return pa.json.read_json(open_read(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"No file of labels at {path}.") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"Cannot read {path} as .{suffix}: {one_line(error)}.") from None
    raise ValueError(f"{path} is not a labels file; its name must end in .csv, .tsv, .jsonl or .parquet.")


def parse_target(target: str) -> tuple[str, float]:
    """Parse a target such as "precision=0.9" into ("precision" or "recall", share). Raises ValueError."""
    name, _, value = target.partition("=")
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if name not in ("precision", "recall") or not 0 < share <= 1:
        raise ValueError(f"target is precision=SHARE or recall=SHARE, such as precision=0.9, not '{target}'.")
    return name, share
