"""Tables with the bytes of pictures as inputs of `capfilt pack`: Parquet files, saved Hugging Face datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.messages import one_line
from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, list_files
from blipcore.io.text_encoding import decode_text
from capfilt.ingest.inputs.annotation_cells import column_of, keys_of_texts, texts_of, value_at
from capfilt.ingest.inputs.annotations import TEXT_COLUMNS
from capfilt.ingest.inputs.exif import img2dataset_orientation
from capfilt.ingest.inputs.input import InputOptions, InputRow, PictureInput, may_hold_texts
from capfilt.ingest.inputs.sample_texts import NOT_KEPT
from capfilt.ingest.inputs.splits import file_split, select_split, wanted_splits
from capfilt.ingest.inputs.table_pictures import (
    dataset_splits,
    find_image_column,
    holds_bytes,
    load_dataset,
    open_columns,
)
from capfilt.ingest.lists.list_files import LFS_POINTER, is_damage
from capfilt.ingest.lists.rows import ListColumn, match_columns
from capfilt.ingest.lists.urls import URL_COLUMNS
from capfilt.shards.further_columns import unify_types


@dataclass(frozen=True)
class TableLayout:
    """The columns of a table with pictures."""

    image: str
    url: str | None
    exif: str | None  # img2dataset's
    texts: tuple[str, ...]
    text_columns: tuple[str, ...]  # that hold them
    further: tuple[str, ...]  # other columns that hold no bytes
    types: pa.Schema  # of these
    unused: tuple[str, ...]  # those of them that may hold texts


class TableInput(PictureInput):
    """Rows of tables with pictures. A table that cannot be read is one row with the reason."""

    def _count_layout(self, layout: TableLayout) -> None:
        self.picture = self.picture or f"'{layout.image}'"
        for name in layout.texts:
            self.texts[name] += 0
        self.unused.update(layout.unused)
        types = {field.name: field.type for field in self.further or ()}
        for field in layout.types:  # files may have a column in different types
            known = types.get(field.name, field.type)
            types[field.name] = known if known == field.type else unify_types([known, field.type])
        self.further = pa.schema(list(types.items()))

    def _table_rows(self, path: AnyPath, name: str, layout: TableLayout) -> Iterator[InputRow]:
        read = list(dict.fromkeys(filter(None, (layout.url, *layout.text_columns, *layout.further, layout.exif))))
        for number, cells in enumerate(_read_cells(path, read)):
            split = cells.get("split")
            split = split if isinstance(split, str) else None
            if not self.is_in_split(split):
                yield {"split": split}
                continue
            url = cells.get(layout.url) if layout.url else None
            row: InputRow = {"url": url if isinstance(url, str) else f"{name}#{number}"}
            texts: list[str] = []
            for column in layout.texts:
                try:
                    cell = _decode(value_at(cells, column), self.options.encoding)
                    found = texts_of(cell)
                except ValueError as error:
                    self.add_problem(
                        "texts in another encoding, not read", f"{name}, row {number}, '{column}' ({error})"
                    )
                    row["error"] = f"text: '{column}' is not UTF-8"
                    self.unreadable = self.unreadable or f"{name}, row {number}: '{column}' is not UTF-8"
                    continue
                self.texts[column] += any(text.strip() for text in found)
                texts += found
                if not found:
                    self.unused.update(keys_of_texts(column, cell))
            yield row | {
                "texts": texts,
                "columns": {column: cells[column] for column in layout.further},
                "body": os.fsencode(str(path)),
                "column": layout.image,
                "offset": number,
                "split": split,
                "orientation": img2dataset_orientation(cells),
            }


class ParquetInput(TableInput):
    """Parquet files with the bytes of pictures."""

    def __init__(self, source: AnyPath, root: AnyPath, files: dict[str, int], options: InputOptions) -> None:
        options.refuse("parquet", "no_header", "columns", "quoting")
        names: list[str] = list(files)
        splits: tuple[str, ...] = ()
        if any(map(file_split, files)):
            names, splits = select_split(names, file_split, options.split, source)
        super().__init__(source, "parquet", [(name, files[name]) for name in names], options, splits=splits)
        self.root = root
        self._layouts: dict[str, TableLayout] = {}
        self._problems_of_files: dict[str, str] = {}
        for name in names:
            self._open(name)
        if not self._layouts:
            raise ValueError(f"{self._problems_of_files[names[0]]}.")

    def _open(self, name: str) -> None:
        path = self.root / name
        try:
            layout = find_layout(read_parquet_schema(path), self.options, str(path))
        except ValueError as error:
            problem = str(error).removesuffix(".")
        else:
            if layout is not None:
                self._layouts[name] = layout
                self._count_layout(layout)
                return
            problem = f"{path} has no column that holds the bytes of pictures; if it names files, give it as SOURCE"
        self._problems_of_files[name] = problem
        self.add_problem("Parquet files that cannot be read", f"{name} ({problem})")

    def read_rows(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            layout = self._layouts.get(name)
            if layout is None:
                yield {"url": name, "texts": [], "status": "other", "error": self._problems_of_files[name]}
            else:
                yield from self._table_rows(self.root / name, name, layout)


class SavedDatasetInput(TableInput):
    """A dataset saved with `save_to_disk` of Hugging Face `datasets`, or some of its splits."""

    def __init__(self, path: AnyPath, options: InputOptions) -> None:
        options.refuse("dataset", "no_header", "columns", "quoting")
        names = dataset_splits(path)
        splits = wanted_splits(names, options.split, path) if names else ()
        folders = [path / split for split in splits] or [path]
        files = [
            (f"{folder.name}/" * bool(splits) + name, size) for folder in folders for name, size in _own_files(folder)
        ]
        super().__init__(path, "dataset", files, options, splits=splits)
        self._layouts = {folder: self._open(folder) for folder in folders}

    def _open(self, folder: AnyPath) -> TableLayout:
        schema = load_dataset(str(folder)).data.schema
        layout = find_layout(schema, self.options, str(folder))
        if layout is None:
            raise ValueError(f"{folder} has no column with the bytes of pictures: {', '.join(schema.names)}.")
        self._count_layout(layout)
        return layout

    def read_rows(self) -> Iterator[InputRow]:
        for folder, layout in self._layouts.items():
            yield from self._table_rows(folder, folder.name, layout)


def _own_files(folder: AnyPath) -> list[tuple[str, int]]:
    files = list_files(folder)
    return [(name, files[name]) for name in sorted(files) if "/" not in name]


def find_layout(schema: pa.Schema, options: InputOptions, path: str) -> TableLayout | None:
    """Return the columns of a table, None if none holds pictures. Raises ValueError for a column that is ambiguous."""
    image = find_image_column(schema, options.image_col, path)
    if image is None:
        return None
    others = [field.name for field in schema if field.name != image]
    repeated = {name for name in others if others.count(name) > 1}
    (url,) = match_columns(list(dict.fromkeys(others)), [ListColumn("a URL", URL_COLUMNS, None, "", False)], path)
    named = [column_of(name, others) for name in options.text_names]
    columns = [ListColumn("a caption", (), name, "--caption-col") for name in named] or [
        ListColumn("a caption", TEXT_COLUMNS, None, "--caption-col", required=False)
    ]
    found = match_columns(list(dict.fromkeys(others)), columns, path)
    text_columns = tuple(name for name in found if name is not None)
    texts = options.text_names or text_columns
    for name in repeated.intersection((url, *text_columns)):
        raise ValueError(f"{path} has {others.count(name)} columns with the name '{name}'; rename them.")
    types = [
        field
        for field in schema
        if field.name not in (image, url, *texts, *repeated, *NOT_KEPT) and not _contains_bytes(field.type)
    ]
    further = [field.name for field in types]
    unused = [name for name in further if may_hold_texts(name) and _may_be_text(schema.field(name).type)]
    unused += [name for name in dict.fromkeys(others) if name in repeated]
    exif = "exif" if "exif" in others else None
    return TableLayout(image, url, exif, texts, text_columns, tuple(further), pa.schema(types), tuple(unused))


def read_parquet_schema(path: AnyPath) -> pa.Schema:
    """Return the schema of a Parquet file; ValueError if it is damaged."""
    try:
        with open_read(path) as file:
            return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        with open_read(path) as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        reason = "a Git LFS pointer: fetch it with `git lfs pull`" if is_pointer else one_line(error)[:200]
        raise ValueError(f"{path} is not a readable Parquet file ({reason}).") from None


def _may_be_text(data_type: pa.DataType) -> bool:
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        return _may_be_text(data_type.value_type)
    if pa.types.is_dictionary(data_type):
        return _may_be_text(data_type.value_type)
    types = pa.types
    is_text = types.is_string(data_type) or types.is_large_string(data_type) or types.is_string_view(data_type)
    return is_text or types.is_struct(data_type)


def _contains_bytes(data_type: pa.DataType) -> bool:
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        return _contains_bytes(data_type.value_type)
    if pa.types.is_struct(data_type):
        return any(_contains_bytes(data_type.field(index).type) for index in range(data_type.num_fields))
    return holds_bytes(data_type)


def _decode(value: Any, encoding: str | None) -> Any:
    """Return a cell with bytes decoded, as TensorFlow's tools write texts."""
    return decode_text(value, encoding) if isinstance(value, bytes) else value


def _read_cells(path: AnyPath, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the cells of each row by column."""
    if not names:
        yield from ({} for _ in range(_count_rows(path)))
        return
    with closing(open_columns(str(path), names)) as columns:
        for values in columns:
            yield dict(zip(names, values, strict=True))


def _count_rows(path: AnyPath) -> int:
    if path.is_dir():
        return len(load_dataset(str(path)))
    with open_read(path) as file:
        return pq.read_metadata(file).num_rows
