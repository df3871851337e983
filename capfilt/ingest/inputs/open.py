"""Opens the inputs of `capfilt pack`, by what a folder or a file holds.

An input finds the bytes and the texts of each picture; it decodes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import pyarrow.parquet as pq

from blipcore.io.reading import open_read
from blipcore.io.samples import PICTURE_SUFFIXES
from blipcore.io.storage import AnyPath, file_size, list_files, to_path
from blipcore.io.tars import walk_tar
from capfilt.ingest.account import NO_TEXTS
from capfilt.ingest.inputs.annotated_input import AnnotatedInput
from capfilt.ingest.inputs.folder_input import FolderInput, is_picture
from capfilt.ingest.inputs.imagefolder_input import ImageFolderInput, find_metadata
from capfilt.ingest.inputs.input import KINDS, InputOptions, PictureInput
from capfilt.ingest.inputs.table_input import ParquetInput, SavedDatasetInput, read_parquet_schema
from capfilt.ingest.inputs.table_pictures import find_image_column, is_saved_dataset
from capfilt.ingest.inputs.webdataset_input import WebdatasetInput
from capfilt.ingest.inputs.zip_archive import open_zip
from capfilt.ingest.lists.list_files import list_format

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_input(source: str, options: InputOptions | None = None) -> PictureInput:
    """Open the pictures at `source`; FileNotFoundError or ValueError if there is nothing to pack."""
    options = options or InputOptions()
    _check(options)
    path = to_path(source)
    if not path.exists():
        raise FileNotFoundError(f"No file or folder at {path}.")
    if path.name.lower().endswith(".zip") and path.is_file():
        path = open_zip(path)
    if options.annotations is not None:
        return _open_annotated(path, options.annotations, options)
    opened = _open_folder(path, options) if path.is_dir() else _open_file(path, options)
    opened.source = to_path(source)
    if options.kind not in (None, opened.kind):
        raise ValueError(f"{path} is an input of the kind '{opened.kind}', not '{options.kind}' (--kind).")
    return opened


def _check(options: InputOptions) -> None:
    """Raise ValueError for an option that no input has."""
    if options.kind is not None and options.kind not in KINDS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, not '{options.kind}'.")
    if not options.reads_texts and options.caption_col != (NO_TEXTS,):
        raise ValueError("--caption-col none reads no texts; leave out the other columns.")
    options.list_options()  # raises for an unknown encoding


def _open_annotated(path: AnyPath, annotations: str, options: InputOptions) -> PictureInput:
    options.refuse_kind("annotations")
    if not path.is_dir():
        raise ValueError(f"--annotations names pictures in a folder, but {path} is a file; give the folder as SOURCE.")
    if is_saved_dataset(path):
        raise ValueError(f"{path} is a saved dataset, which has its own texts; leave out --annotations.")
    file = to_path(annotations)
    if not file.is_file():
        raise FileNotFoundError(f"No annotation file at {file}.")
    return AnnotatedInput(file, path, options)


def _open_file(path: AnyPath, options: InputOptions) -> PictureInput:
    name = path.name.lower()
    if name.endswith(COMPRESSED_TARS):
        raise ValueError(
            f"{path} is a compressed tar, in which no picture can be found by its place; decompress it first."
        )
    if name.endswith(".tar"):
        return WebdatasetInput(path, path.parent, {path.name: file_size(path)}, options)
    if name.endswith(".parquet") and options.kind != "annotations" and _has_pictures(path, options):
        return ParquetInput(path, path.parent, {path.name: file_size(path)}, options)
    if list_format(path.name) is None and not name.endswith((".token", ".lst")):
        raise ValueError(f"{path} is neither a table, nor JSON, nor a tar; to pack a picture, give its folder.")
    return AnnotatedInput(path, path.parent, options)


def _open_folder(path: AnyPath, options: InputOptions) -> PictureInput:
    if is_saved_dataset(path):
        return SavedDatasetInput(path, options)
    files = list_files(path)
    kind = options.kind or _find_kind(path, files, options)
    if kind == "imagefolder":
        if not find_metadata(files):
            raise ValueError(f"{path} has no metadata.csv, metadata.jsonl or metadata.parquet (--kind imagefolder).")
        return ImageFolderInput(path, files, options)
    if kind == "folder" and any(map(is_picture, files)):
        return FolderInput(path, files, options)
    if kind == "parquet" and _tables(files):
        opened: PictureInput = ParquetInput(path, path, {name: files[name] for name in _tables(files)}, options)
    elif kind == "webdataset" and _tars(files):
        opened = WebdatasetInput(path, path, {name: files[name] for name in _tars(files)}, options)
    else:
        raise ValueError(_nothing_found(str(path).replace("zip://::", ""), files, options.kind))
    pictures = [name for name in files if is_picture(name)]
    if pictures:
        opened.ignored["pictures"] += len(pictures)
        opened.notes.append(f"pictures beside these files, not read: {len(pictures):,}, such as {pictures[0]}.")
    captions = [name for name in files if name.startswith("captions/") and name.endswith("/manifest.json")]
    if captions:
        folder = captions[0].rpartition("/")[0]
        opened.notes.append(f"texts of a shard set in {folder}, not read: `caption` and `filter` take the set itself.")
    return opened


def _find_kind(path: AnyPath, files: dict[str, int], options: InputOptions) -> str | None:
    """Return the kind of what holds most of the pictures: a snapshot of a hub has tables or tars, and a few figures."""
    pictures = sum(map(is_picture, files))
    tars = _tars(files)
    tables = [name for name in _tables(files) if not (pictures or tars) or _may_have_pictures(path / name, options)]
    in_tables = sum(_count_rows(path / name) for name in tables) if pictures and tables else len(tables)
    in_tars = _count_pictures((path / name for name in tars), pictures + 1) if pictures and tars else len(tars)
    if tables and tars and in_tables and in_tars:
        raise ValueError(
            f"{path} holds {len(tars)} tars, and {len(tables)} Parquet files with pictures; choose one with --kind "
            "webdataset or --kind parquet."
        )
    if pictures > max(in_tables, in_tars):
        return "imagefolder" if find_metadata(files) else "folder"
    if tars and in_tars:
        return "webdataset"
    return "parquet" if tables else None


def _may_have_pictures(path: AnyPath, options: InputOptions) -> bool:
    try:
        return _has_pictures(path, options)
    except ValueError:  # damaged
        return False


def _nothing_found(path: str, files: dict[str, int], kind: str | None) -> str:
    if kind is not None:
        return f"{path} holds nothing of the kind '{kind}' (--kind)."
    suffixes = {"." + name.lower().rpartition(".")[2]: name for name in files if "." in name}
    if ".zip" in suffixes:
        return f"{path} holds zip archives but no pictures; give one of them, such as {path}/{suffixes['.zip']}."
    if any(name.lower().endswith(COMPRESSED_TARS) for name in files):
        return f"{path} holds compressed tars; decompress them first."
    saved = next((name for name in files if name.endswith("/state.json")), None)
    if saved is not None:
        return f"{path} holds saved datasets; give one of them, such as {path}/{saved.rpartition('/')[0]}."
    return f"{path} holds no pictures, tars or Parquet files; to pack an annotation file, give its path."


def _tables(files: dict[str, int]) -> list[str]:
    metadata = find_metadata(files)
    return [name for name in sorted(files) if name.lower().endswith(".parquet") and name not in metadata]


def _tars(files: dict[str, int]) -> list[str]:
    return [name for name in sorted(files) if name.lower().endswith(".tar")]


def _has_pictures(path: AnyPath, options: InputOptions) -> bool:
    """Return whether a Parquet file has a column of pictures, or several. Raises ValueError for a damaged file."""
    schema = read_parquet_schema(path)
    try:
        return find_image_column(schema, options.image_col, str(path)) is not None
    except ValueError:
        return options.image_col is None  # several: told when the file is opened


def _count_rows(path: AnyPath) -> int:
    with open_read(path) as file:
        return pq.read_metadata(file).num_rows


def _count_pictures(tars: Iterable[AnyPath], limit: int) -> int:
    """Return the number of pictures in tars; at most `limit` are counted."""
    count = 0
    for path in tars:
        with open_read(path) as file:
            names = (member.name.rpartition(".")[2].lower() for member in walk_tar(file, []))
            count += sum(1 for _ in islice((name for name in names if name in PICTURE_SUFFIXES), limit - count))
        if count >= limit:
            break
    return count
