"""Pictures worth a look: found while a filtered folder's tables pass, then cut from its tars as thumbnails.

threshold   an ITM score next to the threshold
random      any
disagree    ITM keeps a text that CLIP (or, without CLIP, ITC) likes least
repeated    a text that occurs most often in the data set
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from capfilt.pictures import DecodeError, decode
from capfilt.shards import read_pictures, read_table
from capfilt.storage import Place
from capfilt.survey import Batch, Dataset, Least, Texts

SIDE = 360  # pixels of a thumbnail's longer side
QUALITIES = (80, 60, 40)
TEXTS = 16  # shown of a picture
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


def _one_a_picture(picks: list[Pick]) -> list[Pick]:
    return list({(pick.shard, pick.key): pick for pick in reversed(picks)}.values())[::-1]


def _row(table: Place, row: int) -> dict[str, Any]:
    return read_table(table, ["key", "source", "index"]).slice(row, 1).to_pylist()[0]


# ---------------------------------------------------------------------------------------------------- cutting out


def gallery(data: Dataset, picks: dict[str, list[Pick]], budget: int) -> dict[str, Any]:
    """The picks with all their texts and a thumbnail each, all thumbnails together within `budget` bytes of base64.

    A picture that cannot be had says why in `missing`: the tars may have been moved since.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for pick in (pick for of_kind in picks.values() for pick in of_kind):
        wanted[pick.shard].add(pick.key)
    number = sum(map(len, wanted.values()))
    pictures: dict[str, dict[str, Any]] = {}
    for shard, keys in sorted(wanted.items()):
        texts = _texts(data, shard, keys)
        thumbnails = _thumbnails(data.images / f"{shard}.tar", keys, budget * 3 // 4 // number)
        nothing = {"missing": "not in its tar"}
        pictures |= {f"{shard}/{key}": texts[key] | thumbnails.get(key, nothing) for key in sorted(keys)}
    names = {
        kind: [{**asdict(pick), "picture": f"{pick.shard}/{pick.key}"} for pick in of_kind]
        for kind, of_kind in picks.items()
    }
    return {"kinds": names, "pictures": pictures}


def _texts(data: Dataset, shard: str, keys: set[str]) -> dict[str, dict[str, Any]]:
    """key -> its host, and its texts with their scores and reasons, as the rewritten shard has them."""
    path = data.folder / f"{shard}.parquet"
    table = read_table(path, ["key", "source", "index", "text", *data.columns, "reason", "url"])
    found: dict[str, dict[str, Any]] = {}
    for row in table.filter(pc.is_in(table["key"], pa.array(sorted(keys)))).to_pylist():
        key, url, text = row.pop("key"), row.pop("url"), row["text"] or ""
        picture = found.setdefault(key, {"key": key, "host": _host(url), "texts": [], "more": 0})
        if len(picture["texts"]) >= TEXTS:
            picture["more"] += 1
            continue
        scores = {name: None if (value := row[name]) is None or value != value else value for name in data.columns}
        picture["texts"].append(row | scores | {"text": text[:LETTERS], "cut": len(text) - len(text[:LETTERS])})
    return found


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url or "").hostname
    except ValueError:
        return None


def _thumbnails(tar: Place, keys: set[str], size: int) -> dict[str, dict[str, str]]:
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
