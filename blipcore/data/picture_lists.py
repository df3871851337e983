"""Reads common layouts of pictures with captions as rows of an annotation file.

    imagefolder of `datasets`   a folder with metadata.jsonl or metadata.csv, whose file_name is a path in the folder
    folder with texts           name.txt or name.caption is the text of name.jpg; subfolders are read too
    table                       a .csv or .tsv file whose first line names the columns

Everything else is refused with the commands that make a shard set of it.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blipcore.io.json_rows import read_json_rows
from blipcore.io.list_cells import parse_list
from blipcore.io.samples import PICTURE_SUFFIXES
from blipcore.io.text_encoding import decode_text

# Usual names of columns, the first of which counts.
IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "filepath", "path", "file", "image_name", "img")
TEXT_COLUMNS = ("caption", "text", "description", "title", "captions", "texts", "comment", "sentence", "prompt")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w-]*/[\w-]+")

Row = dict[str, Any]


def is_picture_list(path: Path) -> bool:
    """Return whether `read_picture_list` can read a file or folder."""
    return path.suffix.lower() in DELIMITERS if path.is_file() else path.is_dir() and _is_picture_folder(path)


def read_picture_list(path: Path) -> Iterator[Row]:
    """Yield rows with "image" and "caption", None for a picture without text. Raises ValueError with file and row."""
    if path.is_file():
        return _read_table(path)
    metadata = _metadata_file(path)
    if metadata is None:
        return _read_folder(path)
    return _read_table(metadata) if metadata.suffix == ".csv" else _read_lines(metadata)


def default_root(path: Path) -> Path:
    """Return the folder that paths in a file are relative to; a folder itself."""
    return path if path.is_dir() else path.parent


def pack_first(path: Path | str, problem: str, options: str = "") -> ValueError:
    """Return an error that says how a shard set is made of `path`, and what to do with it."""
    command, shards = pack_command(path, options), _shards_name(path)
    return ValueError(f"{path} {problem}. Make a shard set of it with {command}, then give {shards} in its place.")


def download_first(path: Path | str, location: str) -> ValueError:
    """Return an error that says how the pictures of a list of URLs are fetched."""
    command = f"`capfilt download {shlex.quote(str(path))} DATA`"
    return ValueError(f"{location} has a URL but no picture yet: fetch the list with {command} and use DATA instead.")


def pack_command(path: Path | str, options: str = "") -> str:
    """Return the command that makes a shard set of `path`."""
    return f"`capfilt pack {shlex.quote(str(path))} {shlex.quote(_shards_name(path))}{options}`"


def _shards_name(path: Path | str) -> str:
    return f"{Path(path).name.split('.')[0] or 'data'}-shards"


def no_dataset(name: str) -> FileNotFoundError:
    """Return an error for a path that does not exist; a name such as org/name may be one of the Hugging Face Hub."""
    hint = ""
    if HUB_NAME.fullmatch(name):
        folder = name.rpartition("/")[2]
        hint = (
            f" To use {name} of the Hugging Face Hub, load it with `datasets`, call `save_to_disk('{folder}')`, make a "
            f"shard set of it with `capfilt pack {folder} {folder}-shards`, and give {folder}-shards."
        )
    return FileNotFoundError(f"No data set at {name}.{hint}")


def name_columns(row: Row, path: Path) -> tuple[str, str]:
    """Return the names of the columns that hold picture and text; raise ValueError if one is missing."""
    names = {name.strip().lower(): name for name in reversed(row)}
    image = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
    text = next((names[name] for name in TEXT_COLUMNS if name in names), None)
    if image is None and "url" in names:
        raise download_first(path, str(path))
    if image is None or text is None:
        missing, option = ("picture", "--image-col") if image is None else ("caption", "--caption-col")
        raise pack_first(
            path,
            f"has no column of the {missing} under a usual name; its columns are {', '.join(map(repr, row)) or 'none'}",
            f" {option} NAME",
        )
    return image, text


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def _is_picture_folder(folder: Path) -> bool:
    """Return whether a folder has metadata, or pictures and no tars or tables."""
    names = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(path.suffix in (".tar", ".parquet", ".arrow") for path in names) or (folder / "metadata.parquet").exists():
        return False
    if _metadata_file(folder):
        return True
    split = next((path for path in names if path.is_dir() and _metadata_file(path)), None)
    if split is not None:
        raise ValueError(f"{folder} has its metadata in subfolders: give one of them, such as {split}.")
    return next(_pictures(folder), None) is not None


def _pictures(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, Path | None]]:
    """Yield the pictures below a folder with the files of their texts, in the order of their names.

    `seen` are the folders above, which a link may lead back to.
    """
    paths = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    texts = {name.lower(): path for name, path in paths.items() if path.suffix.lower() in CAPTION_SUFFIXES}
    for name, path in paths.items():
        if path.is_dir():
            if path.resolve() not in seen:
                yield from _pictures(path, seen | {folder.resolve(), path.resolve()})
        elif path.suffix.lstrip(".").lower() in PICTURE_SUFFIXES:
            stems = (path.stem.lower(), name.lower())  # 0.txt or 0.jpg.txt
            candidates = (texts.get(stem + suffix) for stem in stems for suffix in CAPTION_SUFFIXES)
            yield path, next((text for text in candidates if text), None)


def _read_folder(folder: Path) -> Iterator[Row]:
    for picture, text in _pictures(folder):
        try:
            caption = decode_text(text.read_bytes()).strip() if text else None
        except ValueError as error:
            raise ValueError(f"{text} is no text file: {error}. Save it as UTF-8.") from None
        yield {"image": picture.relative_to(folder).as_posix(), "caption": caption}


def _read_table(path: Path) -> Iterator[Row]:
    try:
        text = decode_text(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no text file: {error}. Save it as UTF-8.") from None
    usual, header = DELIMITERS[path.suffix.lower()], text.lstrip().partition("\n")[0]
    delimiter = next((mark for mark in (usual, ";", "\t") if mark in header), usual)
    lines = io.StringIO(text, newline="")
    rows = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
    columns: tuple[str, str] | None = None
    try:
        for number, row in enumerate(rows):
            columns = columns or name_columns({name: None for name in rows.fieldnames or () if name}, path)
            if None in row or None in row.values():
                wrong = "more" if None in row else "fewer"
                raise ValueError(
                    f"{path}, row {number} has {wrong} cells than the first line; quote texts with commas."
                )
            yield {"image": row[columns[0]], "caption": parse_list(row[columns[1]])}
    except csv.Error as error:
        raise pack_first(path, f"is no valid table after line {rows.line_num}: {error}") from None


def _read_lines(path: Path) -> Iterator[Row]:
    columns: tuple[str, str] | None = None
    for start, row in read_json_rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {start.number}: a row must be an object with a file name and a text.")
        columns = columns or name_columns(row, path)
        yield {"image": row.get(columns[0]), "caption": row.get(columns[1])}
