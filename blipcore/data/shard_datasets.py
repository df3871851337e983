"""Opens data sets to train on, and reads those in tar shards; `annotation_datasets` reads annotation files.

    filtered set   tables (key, text, keep); manifest.json gives the shard set with their pictures
    shard set      webdataset tars with `key.jpg`, `key.txt`, `key.json`, and tables (key, caption, status) beside them

Opening counts the entries of every shard: from two or three columns of its table, or without a table from the headers
and texts of its tar. Folders may be remote. Shuffling and decoding are in `stream.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blipcore.data.annotation_datasets import AnnotationDataset
from blipcore.data.dataset import DatasetEntry, ShardedDataset, stable_id
from blipcore.data.picture_lists import is_picture_list, no_dataset, pack_first
from blipcore.io.json_rows import JSON_LINES_SUFFIXES
from blipcore.io.messages import one_line
from blipcore.io.reading import open_read
from blipcore.io.samples import PICTURE_SUFFIXES, choose_text
from blipcore.io.storage import AnyPath, list_names, resolve_reference, to_path
from blipcore.io.tar_cache import TarCache
from blipcore.io.tar_reader import TarReader, summarise_problems
from blipcore.io.text_mixture import TextMixture

T = TypeVar("T")

FILTERED_COLUMNS = ("key", "text", "keep")
SHARD_COLUMNS = ("key", "caption", "status")  # of the table beside a tar, as capfilt and img2dataset write it
STATUS_OK = ("ok", "success")  # capfilt's and img2dataset's status of a picture that is in the tar
REPLACED = "captions/web"  # web texts that replace those of the tars, see `capfilt pack --texts`
THREADS = 8
# Shards per task of a thread. With one each, 10,000 shards took 14 MB that were not freed.
SHARDS_PER_TASK = 32


def open_dataset(
    path: str | AnyPath, image_root: str | Path | None = None, mixture: TextMixture | None = None
) -> ShardedDataset:
    """Open a filtered set, a shard set, annotations or a folder or table of pictures with captions.

    `mixture` gives the probabilities of a filtered set's texts; the texts of other data sets are drawn alike.

    Raises FileNotFoundError if there is nothing at `path`, ValueError if it is no data set or has no entry.
    """
    location = to_path(path)
    if isinstance(location, Path) and is_annotations(location):
        dataset: ShardedDataset = AnnotationDataset(location, image_root)
    elif location.is_dir():
        dataset = _open_folder(location, mixture)
    elif location.exists():
        raise _not_a_dataset(location)
    else:
        raise no_dataset(str(path))
    if not sum(dataset.counts):
        problem = next((f" ({name}: {reason})" for name, reason in dataset.problems.items()), "")
        share = f" and a share in the mixture '{mixture.spec}'" if mixture else ""
        raise ValueError(f"{path} holds no picture with a text to train on{share}{problem}.")
    return dataset


def _open_folder(folder: AnyPath, mixture: TextMixture | None) -> ShardedDataset:
    names = [name for name in list_names(folder) if not name.startswith(".")]  # others are being written
    tars = [name for name in names if name.endswith(".tar")]
    tables = [name for name in names if name.endswith(".parquet")]
    if tars:
        return ShardSetDataset(folder, tars, tables)
    if tables:
        return FilteredDataset(folder, tables, mixture)
    if not names:
        raise ValueError(f"{folder} is empty.")
    raise _not_a_dataset(folder)


def is_annotations(path: Path) -> bool:
    """Return whether a path is a JSON file, or a folder or table of pictures with captions."""
    is_json = path.is_file() and path.suffix.lower() in (".json", *JSON_LINES_SUFFIXES)
    return is_json or is_picture_list(path)


def _not_a_dataset(path: AnyPath) -> ValueError:
    suffix = PurePosixPath(path.name).suffix.lower().lstrip(".")
    if suffix in PICTURE_SUFFIXES:
        return ValueError(f"{path} is a picture; give a file with the captions, or its folder.")
    if suffix in ("gz", "tgz", "bz2", "xz"):
        return ValueError(f"{path} is compressed; decompress it first.")
    if isinstance(path, Path) and (manifests := sorted(path.glob("*/manifest.json"))):
        return ValueError(f"{path} holds data sets: give one of them, such as {manifests[0].parent}.")
    return pack_first(str(path), "is no filtered set, shard set or annotation file")


class _TarDataset:
    """Reads pictures from tars."""

    def __init__(self, images: AnyPath, tars: list[str]) -> None:
        self.images, self.tars = images, tars
        self._cache = TarCache(images)
        self._reader = TarReader(locate=self._cache.local)
        self.problems = self._reader.problems

    def image_id(self, shard: int, key: str) -> int:
        """Return the id of a picture; tars of other tools may each begin with the same key."""
        return stable_id(f"{self.tars[shard]}/{key}")

    def describe(self, shard: int, entry: DatasetEntry) -> str:
        return f"{self.tars[shard]}/{entry.key}"

    def location(self, shard: int, entry: DatasetEntry) -> tuple[str, str]:
        return str(self.images / self.tars[shard]), entry.key

    def read(self, shard: int, entry: DatasetEntry) -> bytes:
        return self._reader.read_image(self.tars[shard], entry.key.removeprefix("./"))

    def prefetch(self, shards: Iterable[int]) -> None:
        self._cache.prefetch(self.tars[shard] for shard in shards)


class FilteredDataset(_TarDataset):
    """A filtered set: the kept texts of its tables, with the pictures of the shard set in its manifest."""

    def __init__(self, folder: AnyPath, tables: list[str], mixture: TextMixture | None = None) -> None:
        self.name, self.folder, self.tables, self.mixture = str(folder), folder, tables, mixture
        images = _read_image_folder(folder)
        super().__init__(images, [f"{PurePosixPath(table).stem}.tar" for table in tables])
        present = set(list_names(images))
        for table, tar in zip(tables, self.tars, strict=True):
            if tar not in present:
                raise FileNotFoundError(f"{folder / table} needs the pictures of {images / tar}, which does not exist.")
        if mixture is not None:
            _require_fit(mixture, folder, tables)
        counted = _count_shards(self._count, tables)
        self.counts = [table.pictures for table in counted]
        self.note = "" if mixture is None else _describe_draws(mixture, counted)  # what the mixture draws

    def load(self, shard: int) -> list[DatasetEntry]:
        """Return the pictures of a table with their kept texts, in row order."""
        kept = self._read_kept(self.tables[shard])
        texts: dict[str, list[str]] = {}
        for key, text in zip(kept["key"].to_pylist(), kept["text"].to_pylist(), strict=True):
            texts.setdefault(key, []).append(text)
        if self.mixture is None:
            return [DatasetEntry(key, tuple(of_key), self.image_id(shard, key)) for key, of_key in texts.items()]
        shares: dict[str, list[float]] = {}
        for key, share in zip(kept["key"].to_pylist(), kept["probability"].to_pylist(), strict=True):
            shares.setdefault(key, []).append(share)
        entries = (
            DatasetEntry(key, tuple(of_key), self.image_id(shard, key), probabilities=tuple(shares[key]))
            for key, of_key in texts.items()
        )
        return [entry for entry in entries if any(entry.probabilities)]

    def _count(self, name: str) -> _TableCount:
        kept = self._read_kept(name)
        pictures = pc.count_distinct(kept["key"]).as_py()
        if self.mixture is None:
            return _TableCount(pictures, 0, Counter())
        drawn = kept.filter(pc.greater(kept["probability"], 0))
        sums = drawn.group_by("source").aggregate([("probability", "sum")]).to_pylist()
        number = pc.count_distinct(drawn["key"]).as_py()
        return _TableCount(number, pictures - number, Counter({row["source"]: row["probability_sum"] for row in sums}))

    def _read_kept(self, name: str) -> pa.Table:
        """Return key and stripped text of the kept rows of a table; with a mixture, also source and probability."""
        path, mixture = self.folder / name, self.mixture
        columns = [*FILTERED_COLUMNS]
        if mixture is not None:
            columns += ["source", *([mixture.score] if mixture.score else [])]
        table = _read_columns(path, tuple(columns))
        missing = [column for column in columns if column not in table.column_names]
        if missing:
            raise ValueError(f"{path} is no filtered table: it lacks the column {', '.join(missing)}.")
        text = pc.utf8_trim_whitespace(table["text"])
        kept = table.set_column(table.column_names.index("text"), "text", text)
        kept = kept.filter(pc.and_(table["keep"], pc.greater(pc.utf8_length(text), 0)))
        if mixture is None:
            return kept.select(["key", "text"])
        scores = kept[mixture.score].to_pylist() if mixture.score else None
        keys, sources, texts = (kept[name].to_pylist() for name in ("key", "source", "text"))
        shares = mixture.probabilities(keys, sources, texts, scores)
        return kept.select(["key", "text", "source"]).append_column("probability", pa.array(shares, pa.float64()))


class _TableCount(NamedTuple):
    """The pictures of a filtered table to train on."""

    pictures: int
    left_out: int  # with kept texts, none of which has a share in the mixture
    sums: Counter[str]  # source -> sum of the probabilities of its texts


def _describe_draws(mixture: TextMixture, counted: Iterable[_TableCount]) -> str:
    """Return what the mixture draws from a filtered set: "texts drawn: web 41.2% (share 50%), ..."."""
    pictures, left_out, sums = (sum(values[1:], values[0]) for values in zip(*counted, strict=True))
    shares = {source: f" (share {share:.0%})" for source, share in mixture.shares.items()}
    parts = [f"{source} {number / pictures:.1%}{shares.get(source, '')}" for source, number in sorted(sums.items())]
    rest = [f"; left out, without a text of positive share: {left_out} pictures"] if left_out else []
    return "".join(["texts drawn: ", ", ".join(parts), *rest])


def _read_image_folder(folder: AnyPath) -> AnyPath:
    """Return the shard set in the manifest of a filtered set; raise ValueError if the set is not finished."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        images = resolve_reference(folder, manifest["images"])
    except FileNotFoundError:
        raise pack_first(
            str(folder), "holds tables but no manifest.json that gives the path of its shard set"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{path} has no "images": the path of the shard set.') from None
    if "stage" in manifest and "counts" not in manifest:
        raise ValueError(f"{folder} is not finished: repeat the command that writes it.")
    if not images.exists():
        raise FileNotFoundError(f"{folder} takes its pictures from {images}, which does not exist.")
    return images


def _require_fit(mixture: TextMixture, folder: AnyPath, tables: list[str]) -> None:
    """Raise ValueError unless the sources and score columns of a filtered set are those that the mixture names."""
    with open_read(folder / tables[0]) as file:
        names = pq.read_schema(file).names
    if "source" not in names:
        raise ValueError(f"{folder / tables[0]} has no column 'source', which a mixture needs.")
    # Between the texts and the verdict stand the scores.
    columns = names[names.index("text") + 1 : names.index("keep")] if {"text", "keep"} <= {*names} else []
    sources: set[str] = set()
    for table in tables:
        sources.update(pc.unique(_read_columns(folder / table, ("source",))["source"]).to_pylist())
    mixture.require(sorted(sources), columns, folder)


class ShardSetDataset(_TarDataset):
    """A shard set: the pictures of its tars that have a web text.

    A table beside a tar selects the pictures, since counting them in the tar would download it. `choose_text` chooses
    the text of a picture, unless a table of REPLACED has the web texts.
    """

    def __init__(self, folder: AnyPath, tars: list[str], tables: list[str]) -> None:
        super().__init__(folder, tars)
        self.name = str(folder)
        self._tables = set(tables)
        self._replaced = set(list_names(folder / REPLACED))
        counts = _count_shards(self._count_captions, tars)
        self.counts = [len(self.load(shard)) if count is None else count for shard, count in enumerate(counts)]

    def load(self, shard: int) -> list[DatasetEntry]:
        """Return the pictures with a web text, in the order of the table beside the tar, or else of the tar."""
        name = self.tars[shard]
        if _table_name(name) in self._replaced:
            return self._load_replaced(shard)
        table = self._read_captions(name)
        tar = self._reader.open(name)
        if table is not None:
            captions = dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))
        else:
            captions = {key: None for key, members in tar.samples.items() if members.image and members.image.complete}
        entries = []
        for key, caption in captions.items():
            members = tar.samples.get(key.removeprefix("./"))
            text = choose_text(tar.read_text(members) if members else None, caption)
            if text and not text.isspace():
                entries.append(DatasetEntry(key, (text.strip(),), self.image_id(shard, key)))
        without_picture = sum(not members.image and bool(members.texts) for members in tar.samples.values())
        problems = [summarise_problems(tar.problems)]  # again: texts that cannot be decoded are known now
        if without_picture:
            problems.append(f"texts without a picture, not used: {without_picture}")
        if any(problems):
            self.problems[name] = "; ".join(filter(None, problems))
        if table is not None:
            listed = {key.removeprefix("./") for key in captions}
            unlisted = [members for key, members in tar.samples.items() if members.image and key not in listed]
            unused = sum(bool((tar.read_text(members) or "").strip()) for members in unlisted)
            if unused:
                self.problems[_table_name(name)] = (
                    f"texts in the tar without a caption in this table, not used: {unused}"
                )
        return entries

    def _load_replaced(self, shard: int) -> list[DatasetEntry]:
        texts: dict[str, list[str]] = {}
        table = self._read_replaced(self.tars[shard])
        for key, text in zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True):
            texts.setdefault(key, []).append(text)
        return [DatasetEntry(key, tuple(of_key), self.image_id(shard, key)) for key, of_key in texts.items()]

    def _read_replaced(self, tar: str) -> pa.Table:
        """Return key and text of the rows that have a text."""
        path = self.images / REPLACED / _table_name(tar)
        table = _read_columns(path, ("key", "text"))
        text = pc.utf8_trim_whitespace(pc.fill_null(table["text"].cast(pa.string()), ""))
        return pa.table({"key": table["key"], "text": text}).filter(pc.greater(pc.utf8_length(text), 0))

    def _count_captions(self, tar: str) -> int | None:
        if _table_name(tar) in self._replaced:
            return pc.count_distinct(self._read_replaced(tar)["key"]).as_py()
        table = self._read_captions(tar)
        return None if table is None else len(table)

    def _read_captions(self, tar: str) -> pa.Table | None:
        """Return key and caption of the captioned pictures in the table beside a tar; None without such a table."""
        name = _table_name(tar)
        if name not in self._tables:
            return None
        try:
            table = _read_columns(self.images / name, SHARD_COLUMNS)
        except ValueError:
            self.problems[name] = "not a readable Parquet file; its tar is read instead"
            return None
        if len(table.column_names) < len(SHARD_COLUMNS) or not pa.types.is_string(table["key"].type):
            return None
        caption = pc.utf8_trim_whitespace(pc.fill_null(table["caption"].cast(pa.string()), ""))
        has_picture = pc.is_in(table["status"], value_set=pa.array(STATUS_OK))
        table = table.set_column(table.column_names.index("caption"), "caption", caption)
        return table.filter(pc.and_(has_picture, pc.greater(pc.utf8_length(caption), 0)))


def _table_name(tar: str) -> str:
    return f"{PurePosixPath(tar).stem}.parquet"


def _read_columns(path: AnyPath, columns: tuple[str, ...]) -> pa.Table:
    """Return the existing columns among `columns`; raise ValueError if the table cannot be read."""
    try:
        with open_read(path) as opened, pq.ParquetFile(opened) as file:
            return file.read(columns=[column for column in columns if column in file.schema_arrow.names])
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({one_line(error)}); delete it and repeat the command "
            "that wrote it."
        ) from error


def _count_shards(count: Callable[[str], T], names: list[str]) -> list[T]:
    """Return the count of each name, on threads: most of the time is spent on files and in Arrow."""
    tasks = [names[first : first + SHARDS_PER_TASK] for first in range(0, len(names), SHARDS_PER_TASK)]
    with ThreadPoolExecutor(THREADS) as pool:
        counts_of_tasks = pool.map(lambda task: [count(name) for name in task], tasks)
        return [value for counts in counts_of_tasks for value in counts]
