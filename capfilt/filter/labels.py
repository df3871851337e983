"""Reads labels written by hand and the target that a threshold must reach."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath
from capfilt.shards.format import WEB
from capfilt.shards.tables import read_table

YES, NO = ("1", "true", "yes"), ("0", "false", "no")


def _every_second(keys: pa.ChunkedArray) -> np.ndarray:
    """Mask of the rows of half of the pictures, drawn as if at random: the same for the same pictures."""
    drawn = sorted(set(keys.to_pylist()), key=lambda key: hashlib.blake2b(key.encode()).digest())
    return np.isin(np.array(keys.to_pylist(), object).astype(str), drawn[1::2])


def read_labels(path: AnyPath) -> pa.Table:
    """key, source, index, match of a labelled file; ValueError, one sentence, for what cannot be understood."""
    suffix = path.name.rpartition(".")[2].lower()
    try:
        if suffix == "parquet":
            table = read_table(path)
        elif suffix in ("csv", "tsv"):
            as_text = pa.csv.ConvertOptions(
                column_types=dict.fromkeys(("key", "source", "match"), pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            )
            table = pa.csv.read_csv(
                open_read(path), None, pa.csv.ParseOptions(delimiter="\t" if suffix == "tsv" else ","), as_text
            )
        elif suffix in ("jsonl", "ndjson", "json"):
            table = pa.json.read_json(open_read(path))
        else:
            raise ValueError(f"{path} is not a .csv, .tsv, .jsonl or .parquet file of labels.")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as .{suffix} ({' '.join(str(error).split())[:200]}).") from None
    for name in ("key", "match"):
        if name not in table.column_names:
            raise ValueError(f"{path} has no column '{name}'; it has {', '.join(table.column_names)}.")
    said = [str(value).strip().lower().removesuffix(".0") for value in table["match"].to_pylist()]
    unclear = next((value for value in said if value not in YES + NO), None)
    if unclear is not None:
        raise ValueError(f"{path} has the label '{unclear}'; a label is 1 or 0, true or false, yes or no.")
    usual = {"key": pa.scalar(None, pa.string()), "source": pa.scalar(WEB), "index": pa.scalar(0, pa.int32())}
    columns = {name: pa.repeat(value, table.num_rows) for name, value in usual.items()}
    for name in set(usual) & set(table.column_names):
        try:
            columns[name] = pc.fill_null(table[name].cast(usual[name].type), usual[name])
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} has a strange {name}: {' '.join(str(error).split())[:200]}.") from None
    if columns["key"].null_count:
        raise ValueError(f"{path} has a label without a key.")
    labels = pa.table({**columns, "match": pa.array([value in YES for value in said]).cast(pa.int8())})
    once = labels.group_by(list(usual), use_threads=False).aggregate([("match", "min"), ("match", "max")])
    split = once.filter(pc.not_equal(once["match_min"], once["match_max"])).slice(0, 1).to_pylist()
    if split:
        raise ValueError(f"{path} labels {' '.join(str(split[0][name]) for name in usual)} both 1 and 0; say which.")
    return once.select([*usual, "match_min"]).rename_columns([*usual, "match"])


def parse_target(target: str) -> tuple[str, float]:
    """("precision" | "recall", share) of `precision=0.9`."""
    name, _, value = target.partition("=")
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if name not in ("precision", "recall") or not 0 < share <= 1:
        raise ValueError(f"target is precision=SHARE or recall=SHARE, such as precision=0.9, not '{target}'.")
    return name, share
