"""Labels written by hand, and the target of a threshold on them.

A labels file is CSV, TSV, JSON lines or Parquet with `key` and `match` (1 or 0, true or false, yes or no), and
optionally `source` (default: web), `index` (default: 0) and `shard`, the name of a tar or table. A shard is necessary
where tars repeat keys, as those of other tools do. The labelled texts should be drawn at random. Rows whose `match` is
"unsure", as `capfilt label` writes them, are left out.
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
from capfilt.filter.texts import as_one_array
from capfilt.shards.format import WEB
from capfilt.shards.tables import read_table

MATCH, NO_MATCH = ("1", "true", "yes"), ("0", "false", "no")
UNSURE = "unsure"
# The columns that identify a text, with their defaults. A shard of None stands for any shard.
_TEXT_COLUMNS = {
    "shard": pa.scalar(None, pa.string()),
    "key": pa.scalar(None, pa.string()),
    "source": pa.scalar(WEB),
    "index": pa.scalar(0, pa.int32()),
}
# Optional columns. `drawn`: null or RANDOM for a text drawn at random, on which precision is measured. `itm`: score by
# a filter that has not seen the picture, where the filter `itm_of` (a fingerprint) was trained on the label.
_FURTHER_COLUMNS = {"drawn": pa.string(), "itm": pa.float64(), "itm_of": pa.string()}
RANDOM = "random"
# In the folder of a run that trained a filter on labels: the labels with `itm` and `itm_of`.
LABELS_OF_RUN = "labels.parquet"


def number_pictures(labels: pa.Table) -> np.ndarray:
    """Return a number per label, the same for labels of the same picture; the order is that of hashes."""
    pictures = [
        key if shard is None else f"{shard}/{key}"
        for shard, key in zip(labels["shard"].to_pylist(), labels["key"].to_pylist(), strict=True)
    ]
    order = sorted(set(pictures), key=lambda picture: hashlib.blake2b(picture.encode()).digest())
    numbers = {picture: number for number, picture in enumerate(order)}
    return np.array([numbers[picture] for picture in pictures], int)


class LabelMatcher:
    """Finds the labels of texts, shard by shard."""

    def __init__(self, labels: pa.Table) -> None:
        self.labels = labels
        self._ids = _text_ids(labels, labels["shard"])
        self._shards: list[str | None] = [None] * len(labels)  # in which the text of each label was found

    def find(self, shard: str, texts: pa.Table) -> np.ndarray:
        """Return the row in the labels of each text of a shard, -1 for texts without a label.

        Raises ValueError for a label without a shard that fits texts of two shards.
        """
        in_shard = pc.index_in(_text_ids(texts, pa.repeat(shard, len(texts))), value_set=self._ids)
        in_any_shard = pc.index_in(_text_ids(texts, pa.nulls(len(texts), pa.string())), value_set=self._ids)
        rows = pc.fill_null(pc.coalesce(in_shard, in_any_shard), -1).to_numpy(zero_copy_only=False)
        for row in rows[rows >= 0].tolist():
            other = self._shards[row]
            if other is not None:
                label = self.labels.slice(row, 1).to_pylist()[0]
                raise ValueError(
                    f"The label of key {label['key']}, source {label['source']}, index {label['index']} fits a text of "
                    f"{other} and one of {shard}, because keys repeat; add a column 'shard' with the name of the tar."
                )
            self._shards[row] = shard
        return rows

    @property
    def found_count(self) -> int:
        """The number of labels whose text was found."""
        return sum(shard is not None for shard in self._shards)


def _text_ids(texts: pa.Table, shards: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a string per text, the same for the same shard, key, source and index."""
    index = texts["index"].cast(pa.string())
    # No shard has an empty name.
    parts = [texts["key"], texts["source"], index, pc.fill_null(shards, "")]
    return as_one_array(pc.binary_join_element_wise(*parts, "\t"))


def read_labels(path: AnyPath) -> pa.Table:
    """Read a labels file as a table of shard, key, source, index, match (0 or 1), drawn, itm and itm_of.

    It has one row per text, in the order of the file.

    Raises ValueError or FileNotFoundError.
    """
    table = _read_file(path)
    for name in ("key", "match"):
        if name not in table.column_names:
            raise ValueError(f"{path} has no column '{name}'; its columns are {', '.join(table.column_names)}.")
    if table["match"].null_count:
        raise ValueError(f"{path} has a row without a label in the column 'match'; write 1, 0 or unsure, or remove it.")
    is_sure = [str(value).strip().lower() != UNSURE for value in table["match"].to_pylist()]
    table = table.filter(pa.array(is_sure, pa.bool_()))
    values = [str(value).strip().lower().removesuffix(".0") for value in table["match"].to_pylist()]
    for value in values:
        if value not in MATCH + NO_MATCH:
            raise ValueError(f"{path} has the label '{value}'; a label is 1 or 0, true or false, yes or no.")
    defaults = _TEXT_COLUMNS | {name: pa.scalar(None, data_type) for name, data_type in _FURTHER_COLUMNS.items()}
    columns = {name: pa.repeat(default, table.num_rows) for name, default in defaults.items()}
    for name, default in defaults.items():
        if name in table.column_names and (name != "itm" or "itm_of" in table.column_names):
            try:
                columns[name] = table[name].cast(default.type)
                if default.is_valid:
                    columns[name] = pc.fill_null(columns[name], default)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # the latter for lists
                raise ValueError(f"Cannot read the column '{name}' of {path}: {one_line(error)}.") from None
    if columns["key"].null_count:
        raise ValueError(f"{path} has a label without a key.")
    # A shard may be given as the path of its tar or table.
    columns["shard"] = pc.replace_substring_regex(columns["shard"], r"^.*/|\.(tar|parquet)$", "")
    labels = pa.table({**columns, "match": pa.array([value in MATCH for value in values]).cast(pa.int8())})
    labels = labels.append_column("row", pa.array(range(len(labels))))
    of_first_row = [(name, "first") for name in _FURTHER_COLUMNS]
    by_text = labels.group_by(list(_TEXT_COLUMNS), use_threads=False).aggregate(
        [("match", "min"), ("match", "max"), ("row", "min"), *of_first_row]
    )
    by_text = by_text.sort_by("row_min")
    contradictory = by_text.filter(pc.not_equal(by_text["match_min"], by_text["match_max"])).to_pylist()
    if contradictory:
        text = " ".join(str(contradictory[0][name]) for name in _TEXT_COLUMNS if contradictory[0][name] is not None)
        raise ValueError(f"{path} labels {text} both 1 and 0; remove one of the two labels.")
    selected = by_text.select([*_TEXT_COLUMNS, "match_min", *(f"{name}_first" for name in _FURTHER_COLUMNS)])
    return selected.rename_columns([*_TEXT_COLUMNS, "match", *_FURTHER_COLUMNS])


def _read_file(path: AnyPath) -> pa.Table:
    suffix = path.name.rpartition(".")[2].lower()
    try:
        if suffix == "parquet":
            return read_table(path)
        if suffix in ("csv", "tsv"):
            # Keys such as 00012 must not become numbers.
            conversion = pa.csv.ConvertOptions(
                column_types=dict.fromkeys(("shard", "key", "source", "match", "itm_of"), pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            )
            parsing = pa.csv.ParseOptions(delimiter="\t" if suffix == "tsv" else ",", newlines_in_values=True)
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
