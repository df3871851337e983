"""Where pictures and their texts live: a filtered folder, a shard set or an annotation file, each read shard by shard.

In: one DATASET path as the user typed it. Out: a `ShardedDataset`, which knows how many pictures each of its shards has, loads
the keys and texts of a shard, and reads the bytes of a picture. Nothing here shuffles or decodes: see `stream.py`.

A filtered folder names its images in `manifest.json`; its tables (key, text, keep) say which texts of which pictures
are used. A shard set is a folder of webdataset tars with `key.jpg` and, where no table (key, caption, status) lies
beside a tar, `key.txt` or the "caption" of `key.json`. Folders may lie behind fsspec URLs.

Opening counts the pictures of every shard, and holds nothing else of them: tables cost a look at two or three columns,
tars without a table are read by their headers.
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blipcore.data.annotation_datasets import AnnotationDataset
from blipcore.data.dataset import DatasetEntry, ShardedDataset, stable_id
from blipcore.io.json_rows import LINES
from blipcore.io.tar_cache import Folder, is_remote
from blipcore.io.tars import TarReader

TABLE_COLUMNS = ("key", "text", "keep")
IMAGE_COLUMNS = ("key", "caption", "status")  # of the table beside a tar, as img2dataset and `capfilt` write it
HAVE_PICTURE = ("ok", "success")  # what the two of them call a row whose picture is in the tar
THREADS = 8  # that count shards
STRETCH = 32  # shards that a thread counts in one go


def open_dataset(path: str | Path, image_root: str | Path | None = None) -> ShardedDataset:
    """Tell what `path` is and open it; ValueError or FileNotFoundError when it is no data set or holds nothing."""
    if not is_remote(path) and not Path(path).exists():
        raise FileNotFoundError(f"data set {path} does not exist")
    if not is_remote(path) and Path(path).is_file() and Path(path).suffix.lower() in (".json", *LINES):
        source: ShardedDataset = AnnotationDataset(Path(path), image_root)
    else:
        source = _open_folder(Folder(path)) if is_remote(path) or Path(path).is_dir() else _no_data_set(path)
    if not sum(source.counts):
        raise ValueError(f"{path} holds no picture with a text to train on{_first_problem(source.problems)}")
    return source


def _open_folder(folder: Folder) -> ShardedDataset:
    if not folder.exists():
        raise FileNotFoundError(f"data set {folder} does not exist")
    if folder.names(".tar"):
        return ShardSetDataset(folder)
    return FilteredDataset(folder) if folder.names(".parquet") else _no_data_set(folder)


def _no_data_set(place: object) -> NoReturn:
    raise ValueError(
        f"{place} is no data set: expected a filtered folder (tables and manifest.json), a shard set (a folder of "
        ".tar files) or an annotation .json or .jsonl"
    )


def _first_problem(problems: dict[str, str]) -> str:
    return "".join(f" ({name}: {reason})" for name, reason in list(problems.items())[:1])


class _TarPictures:
    """What filtered folders and shard sets share: pictures are members of tars."""

    def __init__(self, images: Folder, tars: list[str]) -> None:
        self.images, self.tars = images, tars
        self._reader = TarReader(locate=images.local)
        self.problems = self._reader.problems

    def describe(self, shard: int, picture: DatasetEntry) -> str:
        """What to call a picture in a report."""
        return f"{self.tars[shard]}/{picture.key}"

    def read(self, shard: int, picture: DatasetEntry) -> bytes:
        """The encoded picture; raises OSError."""
        tar = self.tars[shard]
        place = self._reader.index(tar).image(picture.key.removeprefix("./"))
        if place is None:
            raise FileNotFoundError("not in the tar")
        return self._reader.read(tar, place)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch the tars of these shards in the background, where they lie elsewhere."""
        self.images.prefetch(self.tars[shard] for shard in shards)


class FilteredDataset(_TarPictures):
    """A `filtered/<name>` folder: the kept texts of its tables, the pictures of the shard set its manifest names."""

    def __init__(self, folder: Folder) -> None:
        self.name, self.folder, self.tables = str(folder), folder, folder.names(".parquet")
        images = self._images(folder)
        super().__init__(images, [f"{PurePosixPath(table).stem}.tar" for table in self.tables])
        there = set(images.names(".tar"))
        for table, tar in zip(self.tables, self.tars, strict=True):
            if tar not in there:
                raise FileNotFoundError(
                    f"{folder.describe(table)} needs the pictures of {images.describe(tar)}, which does not exist"
                )
        self.counts = _counted(lambda table: pc.count_distinct(_kept(folder, table)["key"]).as_py(), self.tables)

    @staticmethod
    def _images(folder: Folder) -> Folder:
        try:
            with folder.open("manifest.json") as file:
                manifest = json.load(file)
            images = folder / manifest["images"]
        except FileNotFoundError:
            raise ValueError(f"{folder} holds tables but no manifest.json that says where its images are") from None
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f'{folder.describe("manifest.json")} has no "images": the path of the shard set') from None
        if "stage" in manifest and "counts" not in manifest:  # a part of the data must not pass for the whole
            raise ValueError(f"{folder} is not finished: run the command that writes it again")
        if not images.exists():
            raise FileNotFoundError(f"{folder} takes its images from {images}, which does not exist")
        return images

    def load(self, shard: int) -> list[DatasetEntry]:
        """The pictures of a table with their kept texts, in order of first appearance."""
        kept = _kept(self.folder, self.tables[shard])
        texts: dict[str, list[str]] = {}
        for key, text in zip(kept["key"].to_pylist(), kept["text"].to_pylist(), strict=True):
            texts.setdefault(key, []).append(text)
        return [DatasetEntry(key, tuple(own), stable_id(key)) for key, own in texts.items()]


def _counted(count: Callable[[str], int], names: list[str]) -> list[int]:
    """The count of each name, several at a time: most of the work is waiting for files, or done outside of Python."""
    # In stretches: a task for each of 10,000 shards took 14 MB that did not come back.
    stretches = [names[first : first + STRETCH] for first in range(0, len(names), STRETCH)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [own for some in pool.map(lambda some: [count(name) for name in some], stretches) for own in some]


def _columns(folder: Folder, name: str, columns: tuple[str, ...]) -> pa.Table:
    """These columns of a table, as far as it has them; ValueError when it cannot be read."""
    try:
        with folder.open(name) as opened, pq.ParquetFile(opened) as file:
            return file.read(columns=[column for column in columns if column in file.schema_arrow.names])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{folder.describe(name)} is not a readable Parquet file: {error}") from error


def _kept(folder: Folder, name: str) -> pa.Table:
    """Keys and texts of the kept rows of a filtered table."""
    table = _columns(folder, name, TABLE_COLUMNS)
    missing = [column for column in TABLE_COLUMNS if column not in table.column_names]
    if missing:
        raise ValueError(f"{folder.describe(name)} is no filtered table: it lacks the column {', '.join(missing)}")
    has_text = pc.greater(pc.utf8_length(table["text"]), 0)
    return table.filter(pc.and_(table["keep"], has_text)).select(["key", "text"])


class ShardSetDataset(_TarPictures):
    """A shard set: every picture of its tars that has a web text."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder, folder.names(".tar"))
        self.name = str(folder)
        self._tables = set(folder.names(".parquet"))
        counted = _counted(lambda tar: -1 if (rows := self._captions(tar)) is None else len(rows), self.tars)
        self.counts = [count if count >= 0 else len(self.load(shard)) for shard, count in enumerate(counted)]

    def load(self, shard: int) -> list[DatasetEntry]:
        """The pictures of a tar with their web text, in the order of the table beside it or else of the tar."""
        tar = self.tars[shard]
        rows = self._captions(tar)
        if rows is not None:
            pairs = zip(rows["key"].to_pylist(), rows["caption"].to_pylist(), strict=True)
            return [DatasetEntry(key, (text,), stable_id(key)) for key, text in pairs]
        index = self._reader.index(tar)
        pictures = []
        for key, members in index.members.items():
            text = self._text(tar, members)
            if text and index.image(key):
                pictures.append(DatasetEntry(key, (text,), stable_id(key)))
        return pictures

    def _captions(self, tar: str) -> pa.Table | None:
        """Keys and texts of the pictures of a tar by the table beside it, None where there is no such table."""
        name = f"{PurePosixPath(tar).stem}.parquet"
        if name not in self._tables:
            return None
        try:
            table = _columns(self.images, name, IMAGE_COLUMNS)
        except ValueError:  # cut short by whoever wrote it: the tar beside it has the pictures and texts all the same
            self.problems[name] = "not a readable Parquet file; its tar is read instead"
            return None
        if len(table.column_names) < len(IMAGE_COLUMNS) or not pa.types.is_string(table["key"].type):
            return None
        text = pc.utf8_trim_whitespace(pc.fill_null(table["caption"].cast(pa.string()), ""))
        there = pc.is_in(table["status"], value_set=pa.array(HAVE_PICTURE))
        table = table.set_column(table.column_names.index("caption"), "caption", text)
        return table.filter(pc.and_(there, pc.greater(pc.utf8_length(text), 0)))

    def _text(self, tar: str, members: dict[str, tuple[int, int]]) -> str:
        if "txt" in members:
            return self._reader.read(tar, members["txt"]).decode(errors="replace").strip()
        if "json" in members:
            try:
                caption = json.loads(self._reader.read(tar, members["json"])).get("caption")
            except (ValueError, AttributeError, RecursionError):
                return ""
            return caption.strip() if isinstance(caption, str) else ""
        return ""
