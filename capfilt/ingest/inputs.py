"""Pictures that are there already, whatever they lie in: where the bytes of each are, and its texts.

In: what the user named. Out: a `PictureInput`, which gives a row for each picture in its order; nothing is decoded here, and
of the pictures no byte is read.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.reading import open_read
from blipcore.io.samples import IndexedTar
from blipcore.io.storage import AnyPath, file_size, list_files, to_path
from capfilt.ingest.annotated_input import open_annotated_input
from capfilt.ingest.input import (
    PICTURE_LIKE_SUFFIXES,
    TEXT_COLUMNS,
    InputColumns,
    InputRow,
    PictureInput,
    file_row,
    cell_texts,
)
from capfilt.ingest.lists import ListColumn, match_columns, list_format
from capfilt.ingest.table_pictures import find_image_column, is_saved_dataset, load_dataset, open_columns
from capfilt.ingest.urls import URL_COLUMNS

# What img2dataset's `exif` calls the orientations that are not upright; the pictures that it makes smaller lose theirs.
ORIENTATIONS = {
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}
MAX_TEXT_BYTES = 1 << 20  # bytes of a name.txt


def open_input(source: str, annotations: str | None, columns: InputColumns) -> PictureInput:
    """Tell what `source` is; ValueError or FileNotFoundError, one sentence, when it is nothing that can be packed."""
    path = to_path(source)
    if not path.exists():
        raise FileNotFoundError(f"Nothing at {path}.")
    if annotations is not None:
        return open_annotated_input(to_path(annotations), path if path.is_dir() else path.parent, columns)
    if is_saved_dataset(path):
        return SavedDatasetInput(path, columns)
    if path.is_file():
        if path.name.endswith(".tar"):
            return WebdatasetInput(path.parent, {path.name: file_size(path)})
        if path.name.endswith(".parquet") and _find_image_column(path, columns) is not None:
            return ParquetInput(path.parent, {path.name: file_size(path)}, columns)
        if list_format(path.name) is None:
            raise ValueError(f"{path} is neither a table, nor JSON, nor a tar; to pack a picture, give its folder.")
        return open_annotated_input(path, path.parent, columns)
    files = list_files(path)
    folder = FolderInput(path, files)
    if folder.files:
        return folder
    if tars := {name: files[name] for name in sorted(files) if name.endswith(".tar")}:
        return WebdatasetInput(path, tars)
    if tables := {name: files[name] for name in sorted(files) if name.endswith(".parquet")}:
        return ParquetInput(path, tables, columns)
    raise ValueError(f"{path} holds no pictures, tars or Parquet files; give the annotation file itself if it has one.")


class FolderInput(PictureInput):
    """Pictures in a folder and the folders in it, in the order of their names; `name.txt` is the text of `name.jpg`."""

    def __init__(self, root: AnyPath, files: dict[str, int]):
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
        # by the name as it would be in lower case: IMG_1.TXT belongs to IMG_1.JPG
        self.texts = {f"{name[:-4]}.txt": name for name, _ in self.files if name.lower().endswith(".txt")}
        if all(name.lower().endswith(".txt") for name, _ in self.files):
            self.files = []
        else:
            self.ignored = others

    def __iter__(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            if name.lower().endswith(".txt"):
                continue
            beside = self.texts.get(_text_name(name)) or self.texts.get(f"{name}.txt")
            texts = [] if beside is None else [_read_text(self.root / beside)]
            yield file_row(self.root, name, texts)


def _text_name(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def _read_text(path: AnyPath) -> str | None:
    try:
        with open_read(path) as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8-sig", errors="replace").strip()
    except OSError:  # the picture is there all the same
        return None


class ParquetInput(PictureInput):
    """Parquet files with the bytes of pictures. A file that cannot be read is one row that says so."""

    def __init__(self, root: AnyPath, files: dict[str, int], columns: InputColumns):
        super().__init__("parquet", list(files.items()))
        self.root, self.columns = root, columns
        self.broken = {name: why for name in files if (why := self._why_broken(root / name))}
        if len(self.broken) == len(files):
            first = next(iter(files))
            raise ValueError(f"{root / first}: {self.broken[first]}.")

    def _why_broken(self, path: AnyPath) -> str | None:
        try:
            return None if _find_image_column(path, self.columns) else "no column holds the bytes of pictures"
        except ValueError as error:
            return str(error).removesuffix(".")

    def __iter__(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            if name in self.broken:
                yield {"url": name, "texts": [], "status": "other", "error": self.broken[name]}
            else:
                path = self.root / name
                yield from _table_rows(str(path), name, _read_schema(path), self.columns)


class SavedDatasetInput(PictureInput):
    """A dataset that Hugging Face `datasets` has saved."""

    def __init__(self, path: AnyPath, columns: InputColumns):
        data = load_dataset(str(path))
        self.schema = data.data.schema
        if find_image_column(self.schema, columns.image, str(path)) is None:
            raise ValueError(f"{path} has no column with the bytes of pictures: {', '.join(self.schema.names)}.")
        files = list_files(path)
        super().__init__("dataset", [(name, files[name]) for name in sorted(files) if "/" not in name])
        self.path, self.columns = path, columns

    def __iter__(self) -> Iterator[InputRow]:
        yield from _table_rows(str(self.path), self.path.name, self.schema, self.columns)


def _read_schema(path: AnyPath) -> pa.Schema:
    with open_read(path) as file:
        return pq.read_schema(file)


def _find_image_column(path: AnyPath, columns: InputColumns) -> str | None:
    try:
        return find_image_column(_read_schema(path), columns.image, str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({' '.join(str(error).split())[:200]}).") from None


def _table_rows(path: str, name: str, schema: pa.Schema, columns: InputColumns) -> Iterator[InputRow]:
    """A row of the plan for each row of a table with pictures."""
    column = find_image_column(schema, columns.image, path)
    wanted = (
        ListColumn("a URL", URL_COLUMNS, None, "", required=False),
        ListColumn("a caption", TEXT_COLUMNS, columns.caption, "--caption-col", required=False),
    )
    url_name, text_name = match_columns([field.name for field in schema if field.name != column], wanted, path)
    there = list(dict.fromkeys(filter(None, (url_name, text_name))))
    if there:
        cells = (dict(zip(there, values, strict=True)) for values in open_columns(path, there))
    else:
        cells = ({} for _ in range(_count_rows(path)))
    for number, row in enumerate(cells):
        url = row.get(url_name)
        yield {
            "url": url if isinstance(url, str) else f"{name}#{number}",
            "texts": cell_texts(row.get(text_name)),
            "body": os.fsencode(path),
            "column": column,
            "offset": number,
        }


def _count_rows(path: str) -> int:
    if to_path(path).is_dir():
        return len(load_dataset(path))
    with open_read(to_path(path)) as file:
        return pq.read_metadata(file).num_rows


def _orientation(meta: InputRow) -> int | None:
    """EXIF's orientation of the picture that an img2dataset sample was made of, None where it was upright."""
    try:
        return ORIENTATIONS.get(json.loads(meta["exif"])["Image Orientation"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


class WebdatasetInput(PictureInput):
    """Tars of other makers: samples of a picture, with a text or not. Tars are read where they end or are damaged."""

    def __init__(self, root: AnyPath, files: dict[str, int]):
        super().__init__("webdataset", list(files.items()))
        self.root = root

    def __iter__(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            path = self.root / name
            with IndexedTar(path) as tar:
                problems = tar.problems
                for key, members in tar.samples.items():
                    meta = tar.read_metadata(members)
                    text = tar.read_text(members, meta)
                    url = meta.get("url")
                    row = {"url": url if isinstance(url, str) else f"{name}/{key}", "texts": [text]}
                    image = members.image
                    if image is None:
                        yield row | {"status": "not_found", "error": "no picture in the sample"}
                    elif not image.complete:
                        yield row | {"status": "decode_error", "error": "truncated_tar"}
                    else:
                        at = {"body": os.fsencode(str(path)), "offset": image.offset, "size": image.size}
                        yield row | at | {"orientation": _orientation(meta)}
            counts = Counter(problem.reason for problem in problems)
            self.ignored.update(counts)
            for reason, count in counts.items():  # a line each: a tar made on a Mac has one a picture
                first = next(problem.member for problem in problems if problem.reason == reason)
                print(f"{name}: {reason} {first}" + f" and {count - 1} more" * (count > 1), file=sys.stderr)
