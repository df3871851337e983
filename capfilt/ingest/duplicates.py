"""Which pictures of a shard set are there twice: the same bytes, or nearly the same to the eye. Marked, never deleted.

In: the `sha256` and `dhash` of the set's own tables; no picture is opened. Out: `duplicates/NNNNN.parquet`, a row for
each picture that is a duplicate of one before it. Memory: about 200 bytes a picture while it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.pictures.look_alikes import MAX_DIFFERENT_BITS, count_bits, parse_hashes, are_distinctive
from capfilt.shards.format import read_manifest
from capfilt.shards.manifest import Manifest
from capfilt.shards.tables import read_table, write_table

DUPLICATES = pa.schema(
    [
        ("key", pa.string()),
        ("of", pa.string()),  # key of the first picture like it
        ("kind", pa.string()),  # exact or near
        ("distance", pa.int32()),  # bits in which the difference hashes differ
    ]
)
ROTATION_STEP, WINDOW = 8, 32  # hashes are sorted by every 8th rotation and compared with so many that follow


def mark_duplicates(folder: AnyPath, shards: Iterable[str], kind: str) -> dict[str, int]:
    """Write `folder/duplicates` for the pictures of these shards; `kind` is "exact", or "near" for both kinds."""
    shards = list(shards)
    if not shards:
        return {}
    sizes: dict[str, int] = {}
    keys, digests, hashes = [], [], []
    for shard in shards:
        table = read_table(folder / f"{shard}.parquet", ["key", "status", "sha256", "dhash"])
        table = table.filter(pc.equal(table["status"], "ok"))
        sizes[shard] = len(table)
        keys += table["key"].cast(pa.large_string()).chunks
        digests.append(parse_hashes([digest[:32] for digest in table["sha256"].to_pylist()]).reshape(-1, 2))
        hashes.append(parse_hashes(table["dhash"].to_pylist()))
    exact = _first_alike(np.concatenate(digests))
    hashes = np.concatenate(hashes)
    of, kinds = exact, np.where(exact >= 0, "exact", "")
    if kind == "near":
        near = _first_near(hashes, exact < 0)
        of, kinds = np.where(exact >= 0, exact, near), np.where(exact >= 0, "exact", np.where(near >= 0, "near", ""))

    manifest = Manifest.begin(
        folder / "duplicates", "duplicates", {"kind": kind, "bits": MAX_DIFFERENT_BITS}, images=folder
    )
    all_keys = pa.chunked_array(keys, pa.large_string()).combine_chunks()  # to take from chunks joins them each time
    start = 0
    for shard, size in sizes.items():
        rows = start + np.flatnonzero(of[start : start + size] >= 0)
        columns = [
            all_keys.take(pa.array(rows)).cast(pa.string()),
            all_keys.take(pa.array(of[rows])).cast(pa.string()),
            pa.array(kinds[rows].tolist(), pa.string()),
            pa.array(count_bits(hashes[rows] ^ hashes[of[rows]]), pa.int32()),
        ]
        write_table(folder / "duplicates" / f"{shard}.parquet", pa.Table.from_arrays(columns, schema=DUPLICATES))
        start += size
    counts = {name: int(count) for name, count in Counter(kinds[of >= 0].tolist()).items()}
    manifest.finish(counts)
    return counts


def marked_kind(folder: AnyPath) -> str:
    """The kind of duplicates that are marked in `folder`, "" where none are."""
    there = read_manifest(folder / "duplicates")
    return "" if there is None else there["config"]["kind"]


def _first_alike(digests: np.ndarray) -> np.ndarray:
    """For each row the first row with the same (N, 2) digest, -1 where it is the first itself."""
    _, first, group = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    of = first[group.reshape(-1)]
    return np.where(of == np.arange(len(digests)), -1, of)


def _first_near(hashes: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """For each row an earlier one within NEAR bits that is no duplicate itself, -1 where there is none.

    Two hashes that differ in a few bits stand close together in the order of at least one rotation. In a large set
    some pairs may stand further apart than the window; the work stays in proportion to the number of pictures.
    """
    rows = np.flatnonzero(usable & are_distinctive(hashes))
    _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
    firsts = rows[first]  # of those with one hash, which may be any number, the first is compared
    pairs: set[tuple[int, int]] = set()
    for turn in range(0, 64, ROTATION_STEP):
        turned = (hashes[firsts] << np.uint64(turn)) | (hashes[firsts] >> np.uint64((64 - turn) % 64))
        order = firsts[np.argsort(turned)]
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            one, other = order[:-step], order[step:]
            close = count_bits(hashes[one] ^ hashes[other]) <= MAX_DIFFERENT_BITS
            low, high = np.minimum(one[close], other[close]), np.maximum(one[close], other[close])
            pairs.update(zip(high.tolist(), low.tolist(), strict=True))
    of = np.full(len(hashes), -1)
    for later, earlier in sorted(pairs):
        if of[earlier] < 0 and of[later] < 0:
            of[later] = earlier
    own = firsts[group]
    of[rows] = np.where(of[own] >= 0, of[own], np.where(own == rows, -1, own))
    return of
