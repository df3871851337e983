"""The gallery of the report: selects pictures while the tables are read, then makes thumbnails from the tars.

    threshold   with a text whose ITM is close to the threshold
    random      any
    disagree    with a text that ITM keeps and CLIP (without CLIP: ITC) scores lowest
    repeated    one for each of the most frequent texts
    changed     with a text that only one of two sets keeps, largest change of ITM first

In a comparison, a picture also has its texts and verdicts in the other sets.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.filter.decide import KEPT, decided_by_score
from capfilt.filter.filtered_set import FilteredSet, FilteredShard
from capfilt.filter.repair import REPAIRED
from capfilt.filter.sentences import SENTENCES
from capfilt.pictures.decode import MAX_PIXELS
from capfilt.report.statistics import LowestRows, TextStatistics
from capfilt.report.thumbnails import read_thumbnails
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table

# Texts shown per picture: in all sets together, and at least in each set.
MAX_TEXTS = 16
MIN_TEXTS_PER_SET = 4
# Characters shown per text.
MAX_CHARACTERS = 400
# The same for texts of several sentences.
MAX_CHARACTERS_OF_SENTENCES = 1600
# Rows collected per picture shown: several rows may be of one picture.
ROWS_PER_PICTURE = 4

# (source, index) of a text
TextId = tuple[str, int]


@dataclass(frozen=True)
class Pick:
    """A picture of the gallery and the text that it was selected for."""

    shard: str
    key: str
    source: str
    index: int
    # occurrences of the text in the set, for the kind `repeated`
    times: int | None = None


@dataclass
class GalleryCandidates:
    """Candidates of the kinds threshold, random and disagree, collected shard by shard."""

    data: FilteredSet
    # pictures per kind
    number: int
    kinds: dict[str, LowestRows] = field(init=False)

    def __post_init__(self) -> None:
        size = ROWS_PER_PICTURE * self.number
        self.kinds = {kind: LowestRows(size) for kind in ("threshold", "random", "disagree")}
        self.random = np.random.Generator(np.random.Philox(1))
        self.other_score = "clip" if "clip" in self.data.columns else "itc"

    def add(self, shard: FilteredShard) -> None:
        name = pa.repeat(pa.scalar(shard.shard), len(shard.table))
        rows = shard.table.select(["key", "source", "index"]).append_column("shard", name)
        score, threshold = shard.values[self.data.score], self.data.threshold
        # A threshold of 0 keeps all texts; then those above 0.5 are candidates.
        kept_by_score = shard.decided_by_score & (score >= (threshold or 0.5))
        self.kinds["threshold"].offer(rows, np.where(shard.decided_by_score, np.abs(score - threshold), np.nan))
        self.kinds["random"].offer(rows, self.random.random(len(rows)))
        self.kinds["disagree"].offer(rows, np.where(kept_by_score, shard.values[self.other_score], np.nan))

    def picks(self, texts: TextStatistics) -> dict[str, list[Pick]]:
        """Return at most `number` pictures per kind, repeated texts included."""
        picks = {kind: _to_picks(lowest) for kind, lowest in self.kinds.items()}
        picks["repeated"] = [
            Pick(table.stem, **_read_row(table, row), times=times)
            for table, row, times in texts.most_repeated(ROWS_PER_PICTURE * self.number)
        ]
        return {kind: _first_per_picture(of_kind)[: self.number] for kind, of_kind in picks.items()}


def changed_verdicts(data: FilteredSet, others: Sequence[FilteredSet], number: int) -> list[Pick]:
    """Return at most `number` pictures with a text that `data` or another set keeps, but not both.

    Largest changes of ITM first; equal ones, as between two thresholds on the same scores, in random order.
    """
    lowest, random = LowestRows(ROWS_PER_PICTURE * number), np.random.Generator(np.random.Philox(2))
    for other in others:
        other_tables = {path.stem: path for path in other.tables}
        for path in data.tables:
            if path.stem not in other_tables:
                continue
            table, text_ids = _read_with_text_ids(data, path)
            other_table, other_text_ids = _read_with_text_ids(other, other_tables[path.stem])
            match = pc.index_in(text_ids, value_set=other_text_ids)
            table, other_table = table.filter(pc.is_valid(match)), other_table.take(match.drop_null())
            itm_change = np.nan_to_num(np.abs(_itm(table) - _itm(other_table)))
            shard = pa.repeat(pa.scalar(path.stem), len(table))
            rows = table.select(["key", "source", "index"]).append_column("shard", shard)
            priority = 1e-6 * random.random(len(table)) - itm_change
            lowest.offer(rows, np.where(_kept(table) != _kept(other_table), priority, np.nan))
    return _first_per_picture(_to_picks(lowest))[:number]


def _read_with_text_ids(data: FilteredSet, path: AnyPath) -> tuple[pa.Table, pa.Array]:
    """Read a table, and an id per row that is equal for the same text of the same picture in every set.

    A picture is identified by its key and its sha256, or else its shard set.
    """
    table = read_table(path, ["key", "source", "index", "text", "itm", "reason", "sha256"]).combine_chunks()
    picture = pc.coalesce(table["sha256"], pa.scalar(str(data.images)))
    parts = [table["key"], table["source"], table["index"].cast(pa.string()), picture, pc.fill_null(table["text"], "")]
    return table, pc.binary_join_element_wise(*parts, "\t").combine_chunks()


def _kept(table: pa.Table) -> np.ndarray:
    return pc.equal(table["reason"], KEPT).to_numpy(zero_copy_only=False)


def _itm(table: pa.Table) -> np.ndarray:
    return table["itm"].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _to_picks(lowest: LowestRows) -> list[Pick]:
    return [Pick(**row) for row in lowest.rows.to_pylist()] if lowest.rows else []


def _first_per_picture(picks: Iterable[Pick]) -> list[Pick]:
    first: dict[tuple[str, str], Pick] = {}
    for pick in picks:
        first.setdefault((pick.shard, pick.key), pick)
    return list(first.values())


def _read_row(table: AnyPath, row: int) -> dict[str, Any]:
    return read_table(table, ["key", "source", "index"]).slice(row, 1).to_pylist()[0]


# ---------------------------------------------------------------------------------------------------- pictures


def build_gallery(
    data: FilteredSet, picks: dict[str, list[Pick]], budget: int, others: Sequence[FilteredSet] = ()
) -> dict[str, Any]:
    """Return the picks with their texts and thumbnails, in about `budget` bytes of JSON.

    Of each picture, `missing` is the reason for no thumbnail; `others` are its entries in the other sets, or None.
    """
    text_ids: dict[str, dict[str, set[TextId]]] = defaultdict(lambda: defaultdict(set))
    for of_kind in picks.values():
        for pick in of_kind:
            text_ids[pick.shard][pick.key].add((pick.source, pick.index))
    max_texts = max(MIN_TEXTS_PER_SET, MAX_TEXTS // (1 + len(others)))
    pictures: dict[str, dict[str, Any]] = {}
    for shard, keys in sorted(text_ids.items()):
        entries = _read_entries(data, shard, keys, max_texts)
        other_entries = [_read_entries(other, shard, keys, max_texts) for other in others]
        for key in sorted(keys):
            entry = entries[key]
            if others:
                entry["others"] = [_same_picture(other.get(key), entry) for other in other_entries]
            pictures[f"{shard}/{key}"] = entry
    for entry in pictures.values():
        for part in (entry, *filter(None, entry.get("others", ()))):
            del part["origin"]
    remaining = max(budget // 4, budget - len(json.dumps(pictures)))
    images = ShardSet(data.images, list(text_ids))
    max_pixels = max(MAX_PIXELS, images.max_pixels() or 0)
    for shard, keys in text_ids.items():
        # base64 turns 3 bytes into 4
        size = remaining * 3 // 4 // len(pictures)
        thumbnails = read_thumbnails(images.tar(shard), set(keys), size, max_pixels)
        for key in keys:
            pictures[f"{shard}/{key}"] |= thumbnails.get(key, {"missing": "not in its tar"})
    kinds = {
        kind: [{**asdict(pick), "picture": f"{pick.shard}/{pick.key}"} for pick in of_kind]
        for kind, of_kind in picks.items()
    }
    return {"kinds": kinds, "pictures": pictures}


def _same_picture(other: dict[str, Any] | None, entry: dict[str, Any]) -> dict[str, Any] | None:
    return other if other is not None and other["origin"] == entry["origin"] else None


def _read_entries(
    data: FilteredSet, shard: str, keys: dict[str, set[TextId]], max_texts: int
) -> dict[str, dict[str, Any]]:
    """Read host, origin and at most `max_texts` texts per key, those in `keys` with priority."""
    path = data.folder / f"{shard}.parquet"
    if path not in data.tables:
        return {}
    columns = ["key", "source", "index", "text", *data.columns, "reason", "url", "sha256"]
    table = read_table(path, columns, optional=(SENTENCES.name, *REPAIRED.names))
    decided = decided_by_score(table, data.limits, data.best, data.score)
    table = table.append_column("decided_by_score", pa.array(decided))
    rows_by_key = defaultdict(list)
    for row in table.filter(pc.is_in(table["key"], pa.array(sorted(keys)))).to_pylist():
        rows_by_key[row["key"]].append(row)
    entries: dict[str, dict[str, Any]] = {}
    for key, rows in rows_by_key.items():
        selected = [n for n, row in enumerate(rows) if (row["source"], row["index"]) in keys[key]]
        others = [n for n in range(len(rows)) if n not in selected]
        shown = sorted((selected + others)[:max_texts])
        entries[key] = {
            "key": key,
            "host": _url_host(rows[0]["url"]),
            "origin": rows[0]["sha256"] or str(data.images),
            "texts": [_text_entry(rows[n], data.columns) for n in shown],
            "more": len(rows) - len(shown),
        }
    return entries


def _text_entry(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """Return a text with its scores and reason; NaN, which JSON lacks, becomes None."""
    entry = {name: row[name] for name in ("source", "index", "reason", "decided_by_score")}
    for name in columns:
        score = row[name]
        entry[name] = None if score is None or score != score else score
    text = row.get("original") or row["text"] or ""
    sentences = row.get(SENTENCES.name) or []
    limit = MAX_CHARACTERS if len(sentences) < 2 else MAX_CHARACTERS_OF_SENTENCES
    entry |= {"text": text[:limit], "cut": max(0, len(text) - limit)}
    return entry | ({"sentences": _sentence_entries(row, text, limit)} if len(sentences) > 1 else {})


def _sentence_entries(row: dict[str, Any], text: str, limit: int) -> list[dict[str, Any]]:
    """Return place, score and whether it was cut of each sentence before `limit`; places count UTF-16 units."""
    cut = set(row.get("cut") or ())
    entries = []
    for sentence in row[SENTENCES.name]:
        start, end, itm = sentence["start"], sentence["end"], sentence["itm"]
        if end <= limit:
            places = {
                name: len(text[:place].encode("utf-16-le")) // 2 for name, place in (("start", start), ("end", end))
            }
            entries.append({**places, "itm": itm if itm == itm else None, "cut": text[start:end] in cut})
    return entries


def _url_host(url: str | None) -> str | None:
    try:
        return urlsplit(url or "").hostname
    except ValueError:
        return None
