"""Pictures worth a look: found while a filtered folder's tables pass, then cut from its tars as thumbnails.

threshold   an ITM score next to the threshold
random      any
disagree    ITM keeps a text that CLIP (or, without CLIP, ITC) likes least
repeated    a text that occurs most often in the data set
changed     a text that another data set judges otherwise, of which the ITM has moved most

Of a data set beside which others are shown: each picture has their texts and verdicts too, where they have the picture.
"""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from blipcore.io.samples import read_pictures
from blipcore.io.storage import AnyPath
from capfilt.filter.decide import KEPT, hangs_on_itm
from capfilt.filter.filtered_set import Batch, Dataset
from capfilt.pictures.decode import DecodeError, decode
from capfilt.report.statistics import Least, Texts
from capfilt.shards.tables import read_table

SIDE = 360  # pixels of a thumbnail's longer side
QUALITIES = (80, 60, 40)
TEXTS = 16  # shown of a picture, in all data sets together
FEWEST_TEXTS = 4  # shown of a picture in one of them
LETTERS = 400  # shown of a text


@dataclass(frozen=True)
class Pick:
    """A picture worth a look, with the text that is the reason."""

    shard: str
    key: str
    source: str
    index: int
    times: int | None = None  # that this text occurs in the data set


@dataclass
class Candidates:
    """Rows worth a look, by kind, while the tables pass; more than are shown, since some share a picture."""

    data: Dataset
    number: int  # of pictures of a kind
    kinds: dict[str, Least] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = {kind: Least(4 * self.number) for kind in ("threshold", "random", "disagree")}
        self.random = np.random.Generator(np.random.Philox(1))
        self.other = "clip" if "clip" in self.data.columns else "itc"

    def add(self, batch: Batch) -> None:
        shard = pa.repeat(pa.scalar(batch.shard), len(batch.table))
        rows = batch.table.select(["key", "source", "index"]).append_column("shard", shard)
        itm, threshold = batch.values["itm"], self.data.threshold
        liked = batch.hangs_on_itm & (itm >= (threshold or 0.5))
        self.kinds["threshold"].offer(rows, np.where(batch.hangs_on_itm, np.abs(itm - threshold), np.nan))
        self.kinds["random"].offer(rows, self.random.random(len(rows)))
        self.kinds["disagree"].offer(rows, np.where(liked, batch.values[self.other], np.nan))

    def picks(self, texts: Texts) -> dict[str, list[Pick]]:
        """At most `number` pictures of each kind, no picture twice in a kind."""
        found = {
            kind: [Pick(**row) for row in least.rows.to_pylist()] for kind, least in self.kinds.items() if least.rows
        }
        found["repeated"] = [
            Pick(table.stem, **_row(table, row), times=times)
            for table, row, times in texts.most_repeated(4 * self.number)
        ]
        return {kind: _one_a_picture(picks)[: self.number] for kind, picks in found.items()}


def changed(data: Dataset, others: Sequence[Dataset], number: int) -> list[Pick]:
    """At most `number` pictures with a text that `data` keeps and one of the others drops, or the other way round."""
    least, random = Least(4 * number), np.random.Generator(np.random.Philox(2))
    for other in others:
        theirs = {path.stem: path for path in other.tables}
        for path in (path for path in data.tables if path.stem in theirs):
            tables = [_with_origin(source, table) for source, table in ((data, path), (other, theirs[path.stem]))]
            (mine, names), (table, others_names) = tables
            place = pc.index_in(names, value_set=others_names)
            there = pc.is_valid(place)
            mine, table = mine.filter(there), table.take(place.drop_null())
            kept = [pc.equal(one["reason"], KEPT).to_numpy(zero_copy_only=False) for one in (mine, table)]
            itm = [one["itm"].cast(pa.float64()).to_numpy(zero_copy_only=False) for one in (mine, table)]
            moved = np.nan_to_num(np.abs(itm[0] - itm[1]))
            shard = pa.repeat(pa.scalar(path.stem), len(mine))
            rows = mine.select(["key", "source", "index"]).append_column("shard", shard)
            order = 1e-6 * random.random(len(mine)) - moved  # by chance where another threshold is all that has changed
            least.offer(rows, np.where(kept[0] != kept[1], order, np.nan))
    picks = [Pick(**row) for row in least.rows.to_pylist()] if least.rows else []
    return _one_a_picture(picks)[:number]


def _with_origin(data: Dataset, path: AnyPath) -> tuple[pa.Table, pa.Array]:
    """A shard of a data set, and a name for each row that says which text of which picture it is, whoever judged it."""
    table = read_table(path, ["key", "source", "index", "text", "itm", "reason", "sha256"]).combine_chunks()
    picture = pc.coalesce(table["sha256"], pa.scalar(str(data.images)))  # where no hash tells, the same folder does
    parts = [table["key"], table["source"], table["index"].cast(pa.string()), picture, pc.fill_null(table["text"], "")]
    return table, pc.binary_join_element_wise(*parts, "\t").combine_chunks()


def _one_a_picture(picks: list[Pick]) -> list[Pick]:
    return list({(pick.shard, pick.key): pick for pick in reversed(picks)}.values())[::-1]


def _row(table: AnyPath, row: int) -> dict[str, Any]:
    return read_table(table, ["key", "source", "index"]).slice(row, 1).to_pylist()[0]


# ---------------------------------------------------------------------------------------------------- cutting out


def gallery(data: Dataset, picks: dict[str, list[Pick]], budget: int, others: Sequence[Dataset] = ()) -> dict[str, Any]:
    """The picks with all their texts and a thumbnail each, all together within about `budget` bytes.

    A picture that cannot be had says why in `missing`: the tars may have been moved since. `others` of a picture are
    its texts in the other data sets, null where one does not have it.
    """
    wanted: dict[str, dict[str, set[tuple[str, int]]]] = defaultdict(lambda: defaultdict(set))
    for pick in (pick for of_kind in picks.values() for pick in of_kind):
        wanted[pick.shard][pick.key].add((pick.source, pick.index))
    most = max(FEWEST_TEXTS, TEXTS // (1 + len(others)))
    pictures: dict[str, dict[str, Any]] = {}
    for shard, keys in sorted(wanted.items()):
        texts, *beside = (_texts(source, shard, keys, most) for source in (data, *others))
        for key in sorted(keys):
            same = [found.get(key) for found in beside]
            same = [found if found and found["origin"] == texts[key]["origin"] else None for found in same]
            pictures[f"{shard}/{key}"] = texts[key] | ({"others": same} if others else {})
    for picture in pictures.values():
        for about in (picture, *filter(None, picture.get("others", ()))):
            del about["origin"]
    left = max(budget // 4, budget - len(json.dumps(pictures)))
    for shard, keys in wanted.items():
        thumbnails = _thumbnails(data.images / f"{shard}.tar", set(keys), left * 3 // 4 // len(pictures))
        for key in keys:
            pictures[f"{shard}/{key}"] |= thumbnails.get(key, {"missing": "not in its tar"})
    names = {
        kind: [{**asdict(pick), "picture": f"{pick.shard}/{pick.key}"} for pick in of_kind]
        for kind, of_kind in picks.items()
    }
    return {"kinds": names, "pictures": pictures}


def _texts(data: Dataset, shard: str, keys: dict[str, set[tuple[str, int]]], most: int) -> dict[str, dict[str, Any]]:
    """key -> its host, its origin, and its texts with their scores and reasons, as the rewritten shard has them.

    At most so many of a picture's texts; those that it was picked for, `keys` names them, are among them.
    """
    path = data.folder / f"{shard}.parquet"
    if path not in data.tables:
        return {}
    table = read_table(path, ["key", "source", "index", "text", *data.columns, "reason", "url", "sha256"])
    table = table.append_column("hangs_on_itm", pa.array(hangs_on_itm(table, data.limits, data.best)))
    rows = defaultdict(list)
    for row in table.filter(pc.is_in(table["key"], pa.array(sorted(keys)))).to_pylist():
        rows[row.pop("key")].append(row)
    found: dict[str, dict[str, Any]] = {}
    for key, all_rows in rows.items():
        url, origin = all_rows[0]["url"], all_rows[0]["sha256"] or str(data.images)
        first = sorted(range(len(all_rows)), key=lambda n: (_name(all_rows[n]) not in keys[key], n))[:most]
        texts = [_shown(all_rows[n], data.columns) for n in sorted(first)]
        found[key] = {
            "key": key,
            "host": _host(url),
            "origin": origin,
            "texts": texts,
            "more": len(all_rows) - len(texts),
        }
    return found


def _name(row: dict[str, Any]) -> tuple[str, int]:
    return row["source"], row["index"]


def _shown(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    scores = {name: None if (value := row[name]) is None or value != value else value for name in columns}
    text = row["text"] or ""
    about = {name: row[name] for name in ("source", "index", "reason", "hangs_on_itm")}
    return about | scores | {"text": text[:LETTERS], "cut": len(text) - len(text[:LETTERS])}


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url or "").hostname
    except ValueError:
        return None


def _thumbnails(tar: AnyPath, keys: set[str], size: int) -> dict[str, dict[str, str]]:
    """key -> {"image": data URL} or {"missing": why}, for the keys that the tar knows."""
    if not tar.is_file():
        return {}
    found = {}
    for picture in read_pictures(tar, keys=keys):
        try:
            if picture.error:
                raise DecodeError(picture.error)
            found[picture.key] = {"image": _data_url(_thumbnail(decode(picture.image), size))}
        except DecodeError as error:
            found[picture.key] = {"missing": error.reason}
    return found


def _thumbnail(image: Image.Image, size: int) -> bytes:
    """A JPEG of at most `size` bytes if need be by less quality, then by fewer pixels."""
    side = SIDE
    while True:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        for quality in QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= size or side <= 32:
                return buffer.getvalue()
        side //= 2


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
