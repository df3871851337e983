"""Pictures that are there already, whatever they lie in: where the bytes of each are, and its texts.

In: what the user named. Out: a `Source`, which gives a row for each picture in its order; nothing is decoded here, and
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
from blipcore.io.samples import Problem, index_pictures, read_words
from blipcore.io.storage import AnyPath, file_size, list_files, to_path
from capfilt.ingest.annotated_input import _annotated
from capfilt.ingest.input import PICTURES, TEXTS_NAMES, Columns, Row, Source, _of_file, _texts
from capfilt.ingest.lists import Column, choose, kind_of
from capfilt.ingest.table_pictures import image_column, is_saved_dataset, load_dataset, open_columns
from capfilt.ingest.urls import URL_NAMES

# What img2dataset's `exif` calls the orientations that are not upright; the pictures that it makes smaller lose theirs.
TURNED = {
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}
LONGEST_TEXT = 1 << 20  # bytes of a name.txt


def open_source(source: str, annotations: str | None, columns: Columns) -> Source:
    """Tell what `source` is; ValueError or FileNotFoundError, one sentence, when it is nothing that can be packed."""
    path = to_path(source)
    if not path.exists():
        raise FileNotFoundError(f"Nothing at {path}.")
    if annotations is not None:
        return _annotated(to_path(annotations), path if path.is_dir() else path.parent, columns)
    if is_saved_dataset(path):
        return SavedDataset(path, columns)
    if path.is_file():
        if path.name.endswith(".tar"):
            return Webdataset(path.parent, {path.name: file_size(path)})
        if path.name.endswith(".parquet") and _image_column(path, columns) is not None:
            return Tables(path.parent, {path.name: file_size(path)}, columns)
        if kind_of(path.name) is None:
            raise ValueError(f"{path} is neither a table, nor JSON, nor a tar; to pack a picture, give its folder.")
        return _annotated(path, path.parent, columns)
    files = list_files(path)
    folder = Folder(path, files)
    if folder.files:
        return folder
    if tars := {name: files[name] for name in sorted(files) if name.endswith(".tar")}:
        return Webdataset(path, tars)
    if tables := {name: files[name] for name in sorted(files) if name.endswith(".parquet")}:
        return Tables(path, tables, columns)
    raise ValueError(f"{path} holds no pictures, tars or Parquet files; give the annotation file itself if it has one.")


class Folder(Source):
    """Pictures in a folder and the folders in it, in the order of their names; `name.txt` is the text of `name.jpg`."""

    def __init__(self, root: AnyPath, files: dict[str, int]):
        super().__init__("folder", [])
        self.root = root
        others: Counter[str] = Counter()
        for name, size in files.items():
            base = name.rpartition("/")[2]
            suffix = base.rpartition(".")[2].lower() if "." in base else ""
            if suffix in PICTURES or suffix == "txt":
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

    def __iter__(self) -> Iterator[Row]:
        for name, _ in self.files:
            if name.lower().endswith(".txt"):
                continue
            beside = self.texts.get(_beside(name)) or self.texts.get(f"{name}.txt")
            texts = [] if beside is None else [_read_text(self.root / beside)]
            yield _of_file(self.root, name, texts)


def _beside(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def _read_text(path: AnyPath) -> str | None:
    try:
        with open_read(path) as file:
            return file.read(LONGEST_TEXT).decode("utf-8-sig", errors="replace").strip()
    except OSError:  # the picture is there all the same
        return None


class Tables(Source):
    """Parquet files with the bytes of pictures. A file that cannot be read is one row that says so."""

    def __init__(self, root: AnyPath, files: dict[str, int], columns: Columns):
        super().__init__("parquet", list(files.items()))
        self.root, self.columns = root, columns
        self.broken = {name: why for name in files if (why := self._why_broken(root / name))}
        if len(self.broken) == len(files):
            first = next(iter(files))
            raise ValueError(f"{root / first}: {self.broken[first]}.")

    def _why_broken(self, path: AnyPath) -> str | None:
        try:
            return None if _image_column(path, self.columns) else "no column holds the bytes of pictures"
        except ValueError as error:
            return str(error).removesuffix(".")

    def __iter__(self) -> Iterator[Row]:
        for name, _ in self.files:
            if name in self.broken:
                yield {"url": name, "texts": [], "status": "other", "error": self.broken[name]}
            else:
                path = self.root / name
                yield from _of_table(str(path), name, _schema(path), self.columns)


class SavedDataset(Source):
    """A dataset that Hugging Face `datasets` has saved."""

    def __init__(self, path: AnyPath, columns: Columns):
        data = load_dataset(str(path))
        self.schema = data.data.schema
        if image_column(self.schema, columns.image, str(path)) is None:
            raise ValueError(f"{path} has no column with the bytes of pictures: {', '.join(self.schema.names)}.")
        files = list_files(path)
        super().__init__("dataset", [(name, files[name]) for name in sorted(files) if "/" not in name])
        self.path, self.columns = path, columns

    def __iter__(self) -> Iterator[Row]:
        yield from _of_table(str(self.path), self.path.name, self.schema, self.columns)


def _schema(path: AnyPath) -> pa.Schema:
    with open_read(path) as file:
        return pq.read_schema(file)


def _image_column(path: AnyPath, columns: Columns) -> str | None:
    try:
        return image_column(_schema(path), columns.image, str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({' '.join(str(error).split())[:200]}).") from None


def _of_table(path: str, name: str, schema: pa.Schema, columns: Columns) -> Iterator[Row]:
    """A row of the plan for each row of a table with pictures."""
    column = image_column(schema, columns.image, path)
    wanted = (
        Column("a URL", URL_NAMES, None, "", needed=False),
        Column("a caption", TEXTS_NAMES, columns.caption, "--caption-col", needed=False),
    )
    url_name, text_name = choose([field.name for field in schema if field.name != column], wanted, path)
    there = list(dict.fromkeys(filter(None, (url_name, text_name))))
    if there:
        cells = (dict(zip(there, values, strict=True)) for values in open_columns(path, there))
    else:
        cells = ({} for _ in range(_length(path)))
    for number, row in enumerate(cells):
        url = row.get(url_name)
        yield {
            "url": url if isinstance(url, str) else f"{name}#{number}",
            "texts": _texts(row.get(text_name)),
            "body": os.fsencode(path),
            "column": column,
            "offset": number,
        }


def _length(path: str) -> int:
    if to_path(path).is_dir():
        return len(load_dataset(path))
    with open_read(to_path(path)) as file:
        return pq.read_metadata(file).num_rows


def _orientation(meta: Row) -> int | None:
    """EXIF's orientation of the picture that an img2dataset sample was made of, None where it was upright."""
    try:
        return TURNED.get(json.loads(meta["exif"])["Image Orientation"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


class Webdataset(Source):
    """Tars of other makers: samples of a picture, with a text or not. Tars are read where they end or are damaged."""

    def __init__(self, root: AnyPath, files: dict[str, int]):
        super().__init__("webdataset", list(files.items()))
        self.root = root

    def __iter__(self) -> Iterator[Row]:
        for name, _ in self.files:
            problems: list[Problem] = []
            path = self.root / name
            with open_read(path) as file:
                end = file.seek(0, os.SEEK_END)
                for key, parts in index_pictures(file, end, problems).items():
                    text, meta = read_words(file, end, parts)
                    url = meta.get("url")
                    row = {"url": url if isinstance(url, str) else f"{name}/{key}", "texts": [text]}
                    image = parts.get("image")
                    if image is None:
                        yield row | {"status": "not_found", "error": "no picture in the sample"}
                    elif image.offset + image.size > end:
                        yield row | {"status": "decode_error", "error": "truncated_tar"}
                    else:
                        at = {"body": os.fsencode(str(path)), "offset": image.offset, "size": image.size}
                        yield row | at | {"orientation": _orientation(meta)}
            counts = Counter(problem.reason for problem in problems)
            self.ignored.update(counts)
            for reason, count in counts.items():  # a line each: a tar made on a Mac has one a picture
                first = next(problem.member for problem in problems if problem.reason == reason)
                print(f"{name}: {reason} {first}" + f" and {count - 1} more" * (count > 1), file=sys.stderr)
