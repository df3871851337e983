"""Where pictures and their texts live: a filtered folder, a shard set or an annotation file, each read shard by shard.

In: one DATASET path as the user typed it. Out: a `Source`, which knows how many pictures each of its shards has, loads
the keys and texts of a shard, and reads the bytes of a picture. Nothing here shuffles or decodes: see `stream.py`.

A filtered folder names its images in `manifest.json`; its tables (key, text, keep) say which texts of which pictures
are used. A shard set is a folder of webdataset tars with `key.jpg` and `key.txt` or the "caption" of `key.json`.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blipcore.data.annotations import read_captions, split_captions
from blipcore.data.answers import read_pairs, read_questions, split_rows
from blipcore.data.json_rows import LINES
from blipcore.data.tars import TarReader

TABLE_COLUMNS = ("key", "text", "keep")


class Picture(NamedTuple):
    """A picture's key, the texts one may be drawn from, and an integer equal for equal pictures of a source."""

    key: str
    texts: tuple[str, ...]
    image_id: int
    second: "Picture | None" = None  # of a pair
    more: Mapping[str, Any] = MappingProxyType({})  # what else a task wants in the sample


class Source(Protocol):
    """A data set seen as shards of pictures."""

    name: str
    counts: list[int]  # pictures with at least one text, by shard
    problems: dict[str, str]  # what was wrong with whole files: name -> reason

    def load(self, shard: int) -> list[Picture]:
        """The pictures of a shard, in the order of its file."""
        ...

    def read(self, shard: int, picture: Picture) -> bytes:
        """The encoded picture; raises OSError when it cannot be had."""
        ...

    def where(self, shard: int, picture: Picture) -> str:
        """What to call a picture in a report."""
        ...


def open_source(path: str | Path, image_root: str | Path | None = None) -> Source:
    """Tell what `path` is and open it; ValueError or FileNotFoundError when it is no data set or holds nothing."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data set {path} does not exist")
    if path.is_file() and path.suffix.lower() in (".json", *LINES):
        source: Source = AnnotationSource(path, image_root)
    elif path.is_dir() and _visible(path, "*.tar"):
        source = ShardSource(path)
    elif path.is_dir() and _visible(path, "*.parquet"):
        source = FilteredSource(path)
    else:
        raise ValueError(
            f"{path} is no data set: expected a filtered folder (tables and manifest.json), a shard set (a folder of "
            ".tar files) or an annotation .json or .jsonl"
        )
    if not sum(source.counts):
        raise ValueError(f"{path} holds no picture with a text to train on{_first_problem(source.problems)}")
    return source


def _visible(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))  # dot: being written


def _first_problem(problems: dict[str, str]) -> str:
    return "".join(f" ({name}: {reason})" for name, reason in list(problems.items())[:1])


def _image_id(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=6).digest(), "big")


class _TarPictures:
    """What filtered folders and shard sets share: pictures are members of tars."""

    tars: list[Path]

    def __init__(self) -> None:
        self._reader = TarReader()
        self.problems = self._reader.problems

    def where(self, shard: int, picture: Picture) -> str:
        """What to call a picture in a report."""
        return f"{self.tars[shard].name}/{picture.key}"

    def read(self, shard: int, picture: Picture) -> bytes:
        """The encoded picture; raises OSError."""
        path = self.tars[shard]
        place = self._reader.index(path).image(picture.key.removeprefix("./"))
        if place is None:
            raise FileNotFoundError("not in the tar")
        return self._reader.read(path, place)


class FilteredSource(_TarPictures):
    """A `filtered/<name>` folder: the kept texts of its tables, the pictures of the shard set its manifest names."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.name = str(folder)
        images = self._images(folder)
        self.tables = _visible(folder, "*.parquet")
        self.tars = [images / f"{table.stem}.tar" for table in self.tables]
        for table, tar in zip(self.tables, self.tars, strict=True):
            if not tar.is_file():
                raise FileNotFoundError(f"{table} needs the pictures of {tar}, which does not exist")
        self.counts = [pc.count_distinct(_kept(table)["key"]).as_py() for table in self.tables]

    @staticmethod
    def _images(folder: Path) -> Path:
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            images = folder / manifest["images"]  # an absolute path replaces `folder`
        except FileNotFoundError:
            raise ValueError(f"{folder} holds tables but no manifest.json that says where its images are") from None
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f'{folder / "manifest.json"} has no "images": the path of the shard set') from None
        if "stage" in manifest and "counts" not in manifest:  # a part of the data must not pass for the whole
            raise ValueError(f"{folder} is not finished: run the command that writes it again")
        if not images.is_dir():
            raise FileNotFoundError(f"{folder} takes its images from {images}, which does not exist")
        return images

    def load(self, shard: int) -> list[Picture]:
        """The pictures of a table with their kept texts, in order of first appearance."""
        kept = _kept(self.tables[shard])
        texts: dict[str, list[str]] = {}
        for key, text in zip(kept["key"].to_pylist(), kept["text"].to_pylist(), strict=True):
            texts.setdefault(key, []).append(text)
        return [Picture(key, tuple(own), _image_id(key)) for key, own in texts.items()]


def _kept(path: Path) -> pa.Table:
    """Keys and texts of the kept rows of a filtered table."""
    try:
        schema = pq.read_schema(path)
        missing = [column for column in TABLE_COLUMNS if column not in schema.names]
        if missing:
            raise ValueError(f"{path} is no filtered table: it lacks the column {', '.join(missing)}")
        table = pq.read_table(path, columns=list(TABLE_COLUMNS))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    has_text = pc.greater(pc.utf8_length(table["text"]), 0)
    return table.filter(pc.and_(table["keep"], has_text)).select(["key", "text"])


class ShardSource(_TarPictures):
    """A shard set: every picture of its tars that has a web text."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.name = str(folder)
        self.tars = _visible(folder, "*.tar")
        self.counts = [len(self.load(shard)) for shard in range(len(self.tars))]

    def load(self, shard: int) -> list[Picture]:
        """The pictures of a tar with their web text, in the order of the tar."""
        path = self.tars[shard]
        index = self._reader.index(path)
        pictures = []
        for key, members in index.members.items():
            text = self._text(path, members)
            if text and index.image(key):
                pictures.append(Picture(key, (text,), _image_id(key)))
        return pictures

    def _text(self, path: Path, members: dict[str, tuple[int, int]]) -> str:
        if "txt" in members:
            return self._reader.read(path, members["txt"]).decode(errors="replace").strip()
        if "json" in members:
            try:
                caption = json.loads(self._reader.read(path, members["json"])).get("caption")
            except (ValueError, AttributeError):
                return ""
            return caption.strip() if isinstance(caption, str) else ""
        return ""


class AnnotationSource:
    """An annotation file, its rows in parts of which only a few are in memory; the pictures are files."""

    def __init__(self, path: Path, image_root: str | Path | None) -> None:
        self.name, self.path = str(path), path
        self.root = Path(image_root) if image_root is not None else path.parent
        self.problems: dict[str, str] = {}
        self.parts = self.split(path)
        self.counts = [part.pictures for part in self.parts]

    split = staticmethod(split_captions)

    def load(self, shard: int) -> list[Picture]:
        """The pictures of a part, in the order of the file."""
        rows = read_captions(self.path, self.root, part=self.parts[shard])
        return [Picture(row["key"], tuple(row["texts"]), _image_id(str(row["image_id"]))) for row in rows]

    def where(self, shard: int, picture: Picture) -> str:
        """What to call a picture in a report."""
        return picture.key

    def read(self, shard: int, picture: Picture) -> bytes:
        """The encoded picture; raises OSError."""
        try:
            return (self.root / picture.key).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError("no such file") from None


class QuestionSource(AnnotationSource):
    """A VQA file: a "picture" is a row, its text the question; a picture of several questions counts several times."""

    split = staticmethod(split_rows)

    def load(self, shard: int) -> list[Picture]:
        """The questions of a part, with their answers and the answers' weights."""
        rows = read_questions(self.path, self.root, part=self.parts[shard])
        return [
            Picture(
                row["key"],
                (row["question"],),
                _image_id(row["key"]),
                more={"answers": list(row["weights"]), "weights": list(row["weights"].values())},
            )
            for row in rows
        ]


class PairSource(AnnotationSource):
    """An NLVR2 file: a "picture" is a row of two, its text the sentence."""

    split = staticmethod(split_rows)

    def load(self, shard: int) -> list[Picture]:
        """The pairs of a part, each with its label."""
        pairs = []
        for row in read_pairs(self.path, self.root, part=self.parts[shard]):
            left, right = (Picture(key, (row["sentence"],), _image_id(key)) for key in row["keys"])
            pairs.append(left._replace(second=right, more={"label": row["label"]}))
        return pairs
