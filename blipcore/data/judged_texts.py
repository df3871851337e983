"""Judged texts: tables of texts labelled as right or wrong of a picture, for training beside human pairs.

A table is Parquet or JSON lines, with a row per text:

    text (or caption)   the text
    match               1 or true: right of the picture; 0 or false: wrong
    image               file of the picture, relative to the image root, by default to the folder of the table
    shard, key          in place of `image`: the path of a tar, relative to the table or absolute, or a URL, and the
                        key of a picture in it; with an empty `shard`, `key` is the file of a picture

Other columns are ignored. Labels written by hand and near misses have this form.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blipcore.data.check_pictures import count, find_missing
from blipcore.data.dataset import DatasetEntry, Sample, stable_id
from blipcore.data.stream import Stream
from blipcore.io.json_rows import JSON_LINES_SUFFIXES, read_json_rows
from blipcore.io.messages import one_line, shorten
from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath, resolve_reference, to_path
from blipcore.io.tar_cache import TarCache
from blipcore.io.tar_reader import TarReader

PICTURES_PER_PART = 10_000  # held as Python objects at a time
MATCH = {"1": True, "0": False, "true": True, "false": False}
TEXT_COLUMNS = ("text", "caption")
COLUMNS = ("image", "shard", "key", "match", *TEXT_COLUMNS)


class JudgedTexts:
    """The pictures of a table with their judged texts, as a dataset: an entry's `extra` has "judged".

    "judged" are pairs (text, whether it is right of the picture). The table is held in memory as columns.
    """

    def __init__(self, path: AnyPath | str, image_root: str | Path | None = None) -> None:
        self.path = to_path(path)
        self.name = str(path)
        self.root = Path(image_root) if image_root is not None else Path(str(self.path.parent))
        self.problems: dict[str, str] = {}
        self._rows = self._read()
        starts = _starts(self._rows["shard"], self._rows["picture"])
        self._parts = [
            starts[first : first + PICTURES_PER_PART + 1] for first in range(0, len(starts) - 1, PICTURES_PER_PART)
        ]
        self.counts = [len(part) - 1 for part in self._parts]
        self._tars = [shard for shard in self._rows["shard"].unique().to_pylist() if shard]
        self._caches = {str(folder): TarCache(folder) for folder in (self._tar(tar).parent for tar in self._tars)}
        self._reader = TarReader(locate=self._locate)

    def load(self, shard: int) -> list[DatasetEntry]:
        starts = self._parts[shard]
        rows = self._rows.slice(starts[0], starts[-1] - starts[0]).to_pydict()
        entries = []
        for first, stop in pairwise(start - starts[0] for start in starts):
            tar, picture = rows["shard"][first], rows["picture"][first]
            pairs = tuple(zip(rows["text"][first:stop], rows["match"][first:stop], strict=True))
            key = f"{tar}/{picture}" if tar else picture
            # The tar and the picture are in `extra`, since a key of a tar may contain slashes.
            extra = {"judged": pairs, "tar": tar, "picture": picture}
            entries.append(DatasetEntry(key, (pairs[0][0],), stable_id(key), extra=extra))
        return entries

    def read(self, shard: int, entry: DatasetEntry) -> bytes:
        tar, picture = entry.extra["tar"], entry.extra["picture"]
        if tar:
            return self._reader.read_image(tar, picture.removeprefix("./"))
        try:
            return (self.root / picture).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError("no such file") from None

    def describe(self, shard: int, entry: DatasetEntry) -> str:
        return entry.key

    def location(self, shard: int, entry: DatasetEntry) -> tuple[str, str]:
        tar, picture = entry.extra["tar"], entry.extra["picture"]
        return (str(self._tar(tar)), picture) if tar else ("", str((self.root / picture).resolve()))

    def prefetch(self, shards: Iterable[int]) -> None:
        """Do nothing: the pictures of a part may be in any tar."""

    def check_pictures(self) -> None:
        """Record missing pictures in `problems`. Raises ValueError if none exists, or a tar does not."""
        missing_tar = next((tar for tar in map(self._tar, self._tars) if not tar.exists()), None)
        if missing_tar is not None:
            raise ValueError(
                f"{self.name} takes pictures from {missing_tar}, which does not exist. Paths in the column 'shard' are "
                "relative to the folder of the table."
            )
        files = self._rows.filter(pc.equal(self._rows["shard"], ""))["picture"].unique().to_pylist()
        missing = (find_missing(files, self.root, self.name) if files else []) + self._missing_keys()
        pictures = self._rows.select(["shard", "picture"]).group_by(["shard", "picture"]).aggregate([]).num_rows
        if len(missing) == pictures:
            raise ValueError(f"{self.name}: none of its pictures exists, for example {missing[0]}.")
        if missing:
            problem = f"{count(len(missing), 'picture')} not found, replaced by the next: {shorten(missing)}"
            self.problems[self.name] = "; ".join(filter(None, [self.problems.get(self.name), problem]))

    def _missing_keys(self) -> list[str]:
        """Return the pictures that are not in their tars, as shard/key."""
        missing = []
        for shard in self._tars:
            samples = self._reader.open(shard).samples
            keys = self._rows.filter(pc.equal(self._rows["shard"], shard))["picture"].unique().to_pylist()
            for key in keys:
                members = samples.get(key.removeprefix("./"))
                if members is None or members.image is None:
                    missing.append(f"{shard}/{key}")
        return missing

    def _tar(self, shard: str) -> AnyPath:
        return resolve_reference(self.path.parent, shard)

    def _locate(self, shard: str) -> Path:
        tar = self._tar(shard)
        return self._caches[str(tar.parent)].local(tar.name)

    def _read(self) -> pa.Table:
        """Return the columns shard ("" for files), picture, text and match, sorted by picture."""
        table = _read_table(self.path)
        names = table.column_names
        text = next((name for name in TEXT_COLUMNS if name in names), None)
        if "image" in names:
            shard, picture = pa.nulls(len(table), pa.string()), table["image"]
        elif "shard" in names and "key" in names:
            shard, picture = table["shard"], table["key"]
        else:
            raise ValueError(
                f"{self.path} names no pictures: it needs the column 'image', or 'shard' and 'key'; its columns are "
                f"{', '.join(names) or 'none'}."
            )
        if text is None or "match" not in names:
            lacks = "text" if text is None else "match"
            raise ValueError(f"{self.path} has no column '{lacks}'; its columns are {', '.join(names)}.")
        columns = {
            "shard": pc.fill_null(shard.cast(pa.string()), ""),
            "picture": picture.cast(pa.string()),
            "text": table[text].cast(pa.string()),
        }
        rows = pa.table(columns | {"match": self._matches(table["match"])})
        no_picture = pc.index(pc.fill_null(pc.equal(rows["picture"], ""), True), True).as_py()
        if no_picture >= 0:
            raise ValueError(f"{self.path}, row {no_picture}, names no picture; name one or remove the row.")
        has_text = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(rows["text"], ""))), 0)
        blank = len(rows) - pc.sum(has_text).as_py() if len(rows) else 0
        if blank:
            self.problems[self.name] = f"{count(blank, 'row')} without a text, not used"
        rows = rows.filter(has_text)
        if not len(rows):
            raise ValueError(f"{self.path} holds no judged text; leave it out of retrieval.judged_texts.")
        self._require_one_label(rows)
        order = pa.table({"row": pa.array(range(len(rows)))}).append_column("shard", rows["shard"])
        order = order.append_column("picture", rows["picture"])
        keys = [("shard", "ascending"), ("picture", "ascending"), ("row", "ascending")]
        return rows.take(pc.sort_indices(order, sort_keys=keys)).combine_chunks()

    def _require_one_label(self, rows: pa.Table) -> None:
        """Raise ValueError for a text that is both right and wrong of one picture."""
        labels = rows.group_by(["shard", "picture", "text"]).aggregate([("match", "min"), ("match", "max")])
        contradictory = labels.filter(pc.not_equal(labels["match_min"], labels["match_max"]))
        if len(contradictory):
            row = contradictory.slice(0, 1).to_pylist()[0]
            raise ValueError(
                f"{self.path} labels the text {row['text'][:80]!r} of picture {row['picture']} both 1 and 0; "
                "remove one of the rows."
            )

    def _matches(self, column: pa.ChunkedArray) -> pa.Array:
        values = [MATCH.get(str(value).strip().lower()) for value in column.to_pylist()]
        if None in values:
            row = values.index(None)
            raise ValueError(f"{self.path}, row {row}: 'match' must be 1 or 0, not {column[row].as_py()!r}.")
        return pa.array(values, pa.bool_())


def _read_table(path: AnyPath) -> pa.Table:
    if not path.exists():
        raise FileNotFoundError(f"No table of judged texts at {path}.")
    if path.name.lower().endswith(JSON_LINES_SUFFIXES):
        rows: list[Any] = [row for _, row in read_json_rows(Path(str(path)))]
        wrong = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
        if wrong is not None:
            raise ValueError(f"{path}, row {wrong}: a row must be an object with text, match and picture.")
        names = list(dict.fromkeys(name for row in rows for name in row))
        used = [name for name in names if name in COLUMNS]
        # As strings: a column may mix types. A missing value becomes None, which is refused below.
        columns = {name: [None if row.get(name) is None else str(row[name]) for row in rows] for name in used}
        for name, cells in columns.items():
            for number, cell in enumerate(cells):
                if cell is not None and any("\ud800" <= letter <= "\udfff" for letter in cell):
                    raise ValueError(f"{path}, row {number}: '{name}' holds half a character (a lone surrogate).")
        return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    try:
        with open_read(path) as opened, pq.ParquetFile(opened) as file:
            return file.read(columns=[name for name in file.schema_arrow.names if name in COLUMNS])
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} is not a readable table ({one_line(error)}); judged texts are Parquet, or JSON lines in a file "
            f"that ends in {' or '.join(JSON_LINES_SUFFIXES)}."
        ) from error


def _starts(shard: pa.ChunkedArray, picture: pa.ChunkedArray) -> list[int]:
    """Return the first row of each picture, and the number of rows."""
    same = pc.and_(
        pc.equal(shard.slice(1), shard.slice(0, len(shard) - 1)),
        pc.equal(picture.slice(1), picture.slice(0, len(picture) - 1)),
    )
    changes = pc.indices_nonzero(pc.invert(same))
    return [0, *(row + 1 for row in changes.to_pylist()), len(shard)]


class JudgedStream:
    """A stream of human pairs with judged texts of other pictures.

    A `share` of the samples has the field "judged": a sample from the tables, of another picture. Its "texts" are at
    most `texts` of the judged texts of that picture, with equal numbers of right and wrong ones if it has both;
    "matches" are their labels. The draw depends on seed and position alone.
    """

    def __init__(
        self, human: Stream, tables: Sequence[str], image_root: str | Path | None, share: float, texts: int
    ) -> None:
        self._human = human
        self._judged = Stream(tables, human.transform, human.seed, image_root, opener=JudgedTexts)
        self._share, self._texts = _exact(share), texts

    @property
    def notes(self) -> list[str]:
        return self._human.notes

    def __len__(self) -> int:
        """Return the number of human pictures, which make up an epoch."""
        return len(self._human)

    def sample(self, position: int) -> Sample:
        sample, number = self._human.sample(position), int(position * self._share)
        if int((position + 1) * self._share) > number:
            picture = self._judged.sample(number)
            picture["texts"], picture["matches"] = self._draw(picture)
            sample["judged"] = picture
        return sample

    def check_tables(self) -> None:
        """Look for the pictures of the tables, as `Stream.check_pictures`."""
        for dataset in self._judged.datasets:
            assert isinstance(dataset, JudgedTexts)
            dataset.check_pictures()

    def pop_problems(self) -> dict[str, str]:
        return self._human.pop_problems() | self._judged.pop_problems()

    def _draw(self, picture: Sample) -> tuple[list[str], list[bool]]:
        rng = random.Random(f"{self._human.seed}/{picture['epoch']}/{picture['key']}")
        right, wrong = ([text for text, match in picture["judged"] if match == kind] for kind in (True, False))
        each = min(len(right) or self._texts, len(wrong) or self._texts, max(1, self._texts // 2))
        drawn = [rng.sample(texts, min(each, len(texts))) for texts in (right, wrong)]
        return [*drawn[0], *drawn[1]], [True] * len(drawn[0]) + [False] * len(drawn[1])


def require_judged_share(share: float, batch_size: int) -> None:
    """Raise ValueError if a batch could be without a judged picture."""
    if batch_size * _exact(share) < 1:
        raise ValueError(
            f"A batch of {batch_size} with a judged_share of {share:g} has no judged picture: raise judged_share to "
            f"{1 / batch_size:.3f} or more, or train.batch_size."
        )


def _exact(share: float) -> Fraction:
    return Fraction(share).limit_denominator(1000)
