"""Selects, renames and types the further columns of an input, while it is split into plans.

All cells of a column get one type in all shards. Without a type of the input, it is taken from the values of the whole
input: numbers where every text is a plain number, JSON where values of different kinds are mixed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.shards.further_columns import as_json, plain_type, rename_clashes, unify_types

MAX_CELL_BYTES = 65_536  # a larger cell is left out
NONE = "none"  # value of --keep-columns
# Texts that a number gives back unchanged: no leading zeros, at most 18 digits.
_INTEGER = r"^(-?[1-9][0-9]{0,17}|0|)$"
_NUMBER = r"^(-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?|)$"


class FurtherColumns:
    """The further columns of an input. `keep` names those to keep, is ["none"], or is empty for all."""

    def __init__(self, keep: Sequence[str], types: pa.Schema | None = None) -> None:
        """`types` are those of the input's format, None if it has only texts."""
        self.keep = list(keep)
        self.names: dict[str, str] = {}  # name in the input -> name in our tables
        self.seen: dict[str, None] = {}
        self.left_out: Counter[str] = Counter()  # cells that are too large, by column
        self.of_bytes: dict[str, None] = {}
        self._given = {field.name: plain_type(field.type) for field in types or ()}
        self._has_types = types is not None
        self._types: dict[str, list[pa.DataType]] = {}
        self._is_integer: dict[str, bool] = {}
        self._is_number: dict[str, bool] = {}

    def take(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Remove "columns" from each row; return the kept ones as a table, not yet of their final types."""
        cells = [row.pop("columns", None) or {} for row in rows]
        self.seen.update(dict.fromkeys(name for of_row in cells for name in of_row))
        arrays: dict[str, pa.Array] = {}
        for name in self.seen:
            if not self._is_kept(name):
                continue
            array = self._to_array(name, [of_row.get(name) for of_row in cells])
            if array is not None:
                if name not in self.names:
                    text = name.encode("utf-8", errors="replace").decode("utf-8")
                    self.names[name] = rename_clashes([text], self.names.values())[text]
                self._types.setdefault(name, []).append(array.type)
                self._check_numbers(name, array)
                arrays[self.names[name]] = array
        return pa.table(arrays)

    def schema(self) -> pa.Schema:
        """Return the columns with their final types. Raises ValueError for a kept column that the input lacks."""
        missing = [name for name in self.keep if name not in self.seen and name != NONE]
        if missing:
            columns = f"its further columns are {', '.join(self.seen)}" if self.seen else "it has no further column"
            raise ValueError(f"The input has no further column '{missing[0]}' (--keep-columns); {columns}.")
        return pa.schema([(stored, self._final_type(name)) for name, stored in self.names.items()])

    def report(self) -> None:
        """Print what was renamed or left out, on stderr."""
        for name, stored in self.names.items():
            if stored != name:
                print(f"column '{name}' of the input is kept as '{stored}'", file=sys.stderr)
        for name in self.of_bytes:
            print(f"column '{name}' of the input holds bytes and is not kept", file=sys.stderr)
        for name, count in (+self.left_out).items():
            print(f"column '{name}': {count} cells of more than {MAX_CELL_BYTES:,} bytes are left out", file=sys.stderr)

    def _is_kept(self, name: str) -> bool:
        return name not in self.of_bytes and (not self.keep or name in self.keep)

    def _to_array(self, name: str, cells: list[Any]) -> pa.Array | None:
        """Return the cells as an array, None for bytes."""
        try:
            array = pa.array(cells)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError):
            array = pa.array([_clean(as_json(cell)) for cell in cells], pa.string())
        if not pa.types.is_null(array.type) and plain_type(array.type) is None:
            self.of_bytes[name] = None
            return None
        if array.nbytes > MAX_CELL_BYTES:
            small = [array.slice(row, 1).nbytes <= MAX_CELL_BYTES for row in range(len(array))]
            self.left_out[name] += small.count(False)
            array = pc.if_else(pa.array(small), array, pa.scalar(None, array.type))
        return array

    def _check_numbers(self, name: str, array: pa.Array) -> None:
        if self._has_types or not pa.types.is_string(array.type) or not pc.any(pc.not_equal(array, "")).as_py():
            return
        self._is_integer[name] = self._is_integer.get(name, True) and _all_match(array, _INTEGER)
        self._is_number[name] = self._is_number.get(name, True) and _all_match(array, _NUMBER)

    def _final_type(self, name: str) -> pa.DataType:
        given = self._given.get(name)
        if given is not None:
            return given
        unified = unify_types(self._types[name])
        if pa.types.is_string(unified) and name in self._is_number:
            if self._is_integer[name]:
                return pa.int64()
            if self._is_number[name]:
                return pa.float64()
        return unified


def _all_match(array: pa.Array, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(array, pattern)).as_py()


def _clean(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", errors="replace").decode("utf-8")
