"""Inputs of `capfilt pack`: folders, Parquet files, saved datasets, webdatasets, annotation files.

An input finds the bytes and the texts of each picture; it decodes none.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.messages import one_line
from blipcore.io.reading import open_read
from blipcore.io.samples import IndexedTar
from blipcore.io.storage import AnyPath, file_size, list_files, to_path
from blipcore.io.tars import TarProblem
from capfilt.ingest.annotated_input import open_annotated_input
from capfilt.ingest.input import (
    PICTURE_LIKE_SUFFIXES,
    TEXT_COLUMNS,
    InputColumns,
    InputRow,
    PictureInput,
    file_row,
)
from capfilt.ingest.list_files import list_format
from capfilt.ingest.lists import ListColumn, cell_texts, match_columns
from capfilt.ingest.table_pictures import find_image_column, is_saved_dataset, load_dataset, open_columns
from capfilt.ingest.urls import URL_COLUMNS

# EXIF orientations by the name in img2dataset's `exif`. Pictures that img2dataset has resized have lost their own EXIF.
ORIENTATIONS = {
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}
MAX_TEXT_BYTES = 1 << 20  # of a name.txt


def open_input(source: str, annotations: str | None, columns: InputColumns) -> PictureInput:
    """Open the pictures at `source`; FileNotFoundError or ValueError if there is nothing to pack.

    `annotations` is a file that names the pictures under `source`.
    """
    path = to_path(source)
    if not path.exists():
        raise FileNotFoundError(f"No file or folder at {path}.")
    if annotations is not None:
        return open_annotated_input(to_path(annotations), path if path.is_dir() else path.parent, columns)
    if is_saved_dataset(path):
        return SavedDatasetInput(path, columns)
    if path.is_file():
        return _open_file(path, columns)
    files = list_files(path)
    pictures = FolderInput(path, files)
    if pictures.files:
        return pictures
    tars = {name: files[name] for name in sorted(files) if name.endswith(".tar")}
    if tars:
        return WebdatasetInput(path, tars)
    tables = {name: files[name] for name in sorted(files) if name.endswith(".parquet")}
    if tables:
        return ParquetInput(path, tables, columns)
    raise ValueError(f"{path} holds no pictures, tars or Parquet files; to pack an annotation file, give its path.")


def _open_file(path: AnyPath, columns: InputColumns) -> PictureInput:
    if path.name.endswith(".tar"):
        return WebdatasetInput(path.parent, {path.name: file_size(path)})
    if path.name.endswith(".parquet") and _image_column_of(path, columns) is not None:
        return ParquetInput(path.parent, {path.name: file_size(path)}, columns)
    if list_format(path.name) is None:
        raise ValueError(f"{path} is neither a table, nor JSON, nor a tar; to pack a picture, give its folder.")
    return open_annotated_input(path, path.parent, columns)


class FolderInput(PictureInput):
    """Pictures in a folder and its subfolders, in the order of their names; `name.txt` is the text of `name.jpg`."""

    def __init__(self, root: AnyPath, files: dict[str, int]) -> None:
        super().__init__("folder", [])
        self.root = root
        others: Counter[str] = Counter()
        for name, size in files.items():
            base = name.rpartition("/")[2]
            suffix = base.rpartition(".")[2].lower() if "." in base else ""
            if suffix in PICTURE_LIKE_SUFFIXES or suffix == "txt":
                self.files.append((name, size))
            elif not base:
                others["folder not entered"] += 1
            else:
                others[suffix or "no suffix"] += 1
        # By the name with a lower-case suffix: IMG_1.TXT is the text of IMG_1.JPG.
        self.texts = {f"{name[:-4]}.txt": name for name, _ in self.files if name.lower().endswith(".txt")}
        if all(name.lower().endswith(".txt") for name, _ in self.files):
            self.files = []
        else:
            self.ignored = others

    def __iter__(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            if name.lower().endswith(".txt"):
                continue
            text_name = self.texts.get(str(PurePosixPath(name).with_suffix(".txt"))) or self.texts.get(f"{name}.txt")
            texts = [] if text_name is None else [_read_text(self.root / text_name)]
            yield file_row(self.root, name, texts)


def _read_text(path: AnyPath) -> str | None:
    """Return the text of a file, None if it cannot be read: the picture is packed without it."""
    try:
        with open_read(path) as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8-sig", errors="replace").strip()
    except OSError:
        return None


class ParquetInput(PictureInput):
    """Parquet files with the bytes of pictures. A file that cannot be read is one row with the reason."""

    def __init__(self, root: AnyPath, files: dict[str, int], columns: InputColumns) -> None:
        super().__init__("parquet", list(files.items()))
        self.root, self.columns = root, columns
        problems = {name: self._find_problem(root / name) for name in files}
        self.problems = {name: problem for name, problem in problems.items() if problem}
        if len(self.problems) == len(files):
            first = next(iter(files))
            raise ValueError(f"{root / first}: {self.problems[first]}.")

    def _find_problem(self, path: AnyPath) -> str | None:
        try:
            return None if _image_column_of(path, self.columns) else "no column holds the bytes of pictures"
        except ValueError as error:
            return str(error).removesuffix(".")

    def __iter__(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            if name in self.problems:
                yield {"url": name, "texts": [], "status": "other", "error": self.problems[name]}
            else:
                path = self.root / name
                yield from _table_rows(path, name, _read_schema(path), self.columns)


class SavedDatasetInput(PictureInput):
    """A dataset saved with `save_to_disk` of Hugging Face `datasets`."""

    def __init__(self, path: AnyPath, columns: InputColumns) -> None:
        data = load_dataset(str(path))
        self.schema = data.data.schema
        if find_image_column(self.schema, columns.image, str(path)) is None:
            raise ValueError(f"{path} has no column with the bytes of pictures: {', '.join(self.schema.names)}.")
        files = list_files(path)
        super().__init__("dataset", [(name, files[name]) for name in sorted(files) if "/" not in name])
        self.path, self.columns = path, columns

    def __iter__(self) -> Iterator[InputRow]:
        yield from _table_rows(self.path, self.path.name, self.schema, self.columns)


def _read_schema(path: AnyPath) -> pa.Schema:
    with open_read(path) as file:
        return pq.read_schema(file)


def _image_column_of(path: AnyPath, columns: InputColumns) -> str | None:
    """Return the column of a Parquet file that holds pictures, None if there is none."""
    try:
        return find_image_column(_read_schema(path), columns.image, str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({one_line(error)[:200]}).") from None


def _table_rows(path: AnyPath, name: str, schema: pa.Schema, columns: InputColumns) -> Iterator[InputRow]:
    image_column = find_image_column(schema, columns.image, str(path))
    list_columns = (
        ListColumn("a URL", URL_COLUMNS, None, "", required=False),
        ListColumn("a caption", TEXT_COLUMNS, columns.caption, "--caption-col", required=False),
    )
    other_columns = [field.name for field in schema if field.name != image_column]
    url_column, text_column = match_columns(other_columns, list_columns, str(path))
    for number, cells in enumerate(_read_cells(path, [url_column, text_column])):
        url = cells.get(url_column)
        yield {
            "url": url if isinstance(url, str) else f"{name}#{number}",
            "texts": cell_texts(cells.get(text_column)),
            "body": os.fsencode(str(path)),
            "column": image_column,
            "offset": number,
        }


def _read_cells(path: AnyPath, names: list[str | None]) -> Iterator[dict[str | None, Any]]:
    """Yield the cells of each row by column; a name of None is a missing column."""
    existing = list(dict.fromkeys(name for name in names if name is not None))
    if not existing:
        yield from ({} for _ in range(_count_rows(path)))
        return
    for values in open_columns(str(path), existing):
        yield dict(zip(existing, values, strict=True))


def _count_rows(path: AnyPath) -> int:
    if path.is_dir():
        return len(load_dataset(str(path)))
    with open_read(path) as file:
        return pq.read_metadata(file).num_rows


class WebdatasetInput(PictureInput):
    """Tars of samples, each a picture with or without a text; a damaged tar is read as far as possible."""

    def __init__(self, root: AnyPath, files: dict[str, int]) -> None:
        super().__init__("webdataset", list(files.items()))
        self.root = root

    def __iter__(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            path = self.root / name
            with IndexedTar(path) as tar:
                for key, members in tar.samples.items():
                    metadata = tar.read_metadata(members)
                    url = metadata.get("url")
                    row: InputRow = {
                        "url": url if isinstance(url, str) else f"{name}/{key}",
                        "texts": [tar.read_text(members, metadata)],
                    }
                    image = members.image
                    if image is None:
                        row |= {"status": "not_found", "error": "no picture in the sample"}
                    elif not image.complete:
                        row |= {"status": "decode_error", "error": "truncated_tar"}
                    else:
                        row |= {"body": os.fsencode(str(path)), "offset": image.offset, "size": image.size}
                        row |= {"orientation": _orientation(metadata)}
                    yield row
            self._report(name, tar.problems)

    def _report(self, name: str, problems: list[TarProblem]) -> None:
        counts = Counter(problem.reason for problem in problems)
        self.ignored.update(counts)
        for reason, count in counts.items():  # one line each: a tar made on macOS has a problem per picture
            first = next(problem.member for problem in problems if problem.reason == reason)
            print(f"{name}: {reason} {first}" + f" and {count - 1} more" * (count > 1), file=sys.stderr)


def _orientation(metadata: dict[str, Any]) -> int | None:
    """Return the original EXIF orientation of an img2dataset sample, None if upright or unknown."""
    try:
        return ORIENTATIONS.get(json.loads(metadata["exif"])["Image Orientation"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
