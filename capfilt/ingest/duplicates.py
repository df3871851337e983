"""Marks duplicate pictures of a shard set: the same bytes, or nearly the same look.

`duplicates/NNNNN.parquet` has a row for each picture that duplicates an earlier one; nothing is deleted. Only the
columns `sha256` and `dhash` are read. Memory: about 200 bytes per picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.pictures.look_alikes import MAX_DIFFERENT_BITS, are_distinctive, count_bits, parse_hashes
from capfilt.shards.manifest import Manifest, read_manifest
from capfilt.shards.tables import read_table, write_table

DUPLICATES = pa.schema(
    [
        ("key", pa.string()),
        ("of", pa.string()),  # key of the first picture like it
        ("kind", pa.string()),  # exact or near
        ("distance", pa.int32()),  # number of bits in which the difference hashes differ
    ]
)
# Hashes are sorted by every ROTATION_STEP-th rotation, and each is compared with the next WINDOW.
ROTATION_STEP, WINDOW = 8, 32


def mark_duplicates(folder: AnyPath, shards: Iterable[str], kind: str) -> dict[str, int]:
    """Write `folder/duplicates` for the pictures of these shards; return the number of each kind.

    `kind` is "exact", or "near" for both kinds.
    """
    shards = list(shards)
    if not shards:
        return {}
    sizes: dict[str, int] = {}
    key_chunks, digest_parts, hash_parts = [], [], []
    for shard in shards:
        table = read_table(folder / f"{shard}.parquet", ["key", "status", "sha256", "dhash"])
        table = table.filter(pc.equal(table["status"], "ok"))
        sizes[shard] = len(table)
        key_chunks += table["key"].cast(pa.large_string()).chunks
        # The first half of the SHA-256, as two numbers.
        digest_parts.append(parse_hashes([digest[:32] for digest in table["sha256"].to_pylist()]).reshape(-1, 2))
        hash_parts.append(parse_hashes(table["dhash"].to_pylist()))
    hashes = np.concatenate(hash_parts)
    exact = _find_exact(np.concatenate(digest_parts))
    originals, kinds = exact, np.where(exact >= 0, "exact", "")
    if kind == "near":
        near = _find_near(hashes, exact < 0)
        originals = np.where(exact >= 0, exact, near)
        kinds = np.where(exact >= 0, "exact", np.where(near >= 0, "near", ""))

    settings = {"kind": kind, "bits": MAX_DIFFERENT_BITS}
    manifest = Manifest.begin(folder / "duplicates", "duplicates", settings, images=folder)
    # Combined once: `take` would combine the chunks on every call.
    keys = pa.chunked_array(key_chunks, pa.large_string()).combine_chunks()
    start = 0
    for shard, size in sizes.items():
        rows = start + np.flatnonzero(originals[start : start + size] >= 0)
        columns = [
            keys.take(pa.array(rows)).cast(pa.string()),
            keys.take(pa.array(originals[rows])).cast(pa.string()),
            pa.array(kinds[rows].tolist(), pa.string()),
            pa.array(count_bits(hashes[rows] ^ hashes[originals[rows]]), pa.int32()),
        ]
        write_table(folder / "duplicates" / f"{shard}.parquet", pa.Table.from_arrays(columns, schema=DUPLICATES))
        start += size
    counts = {name: int(count) for name, count in Counter(kinds[originals >= 0].tolist()).items()}
    manifest.finish(counts)
    return counts


def marked_kind(folder: AnyPath) -> str:
    """Return the kind of the duplicates marked in `folder`, "" if there are none."""
    manifest = read_manifest(folder / "duplicates")
    return "" if manifest is None else manifest["config"]["kind"]


def _find_exact(digests: np.ndarray) -> np.ndarray:
    """Return for each row of `digests` (N, 2) the first equal row, or -1 for the first one itself."""
    _, first, group = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    originals = first[group.reshape(-1)]
    return np.where(originals == np.arange(len(digests)), -1, originals)


def _find_near(hashes: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return for each hash (N,) the row of an earlier non-duplicate within MAX_DIFFERENT_BITS, or -1.

    Hashes that differ in a few bits are near each other in the sorted order of at least one rotation. Pairs further
    apart than WINDOW, as in a large set, are missed; in return the work is proportional to N.
    """
    rows = np.flatnonzero(usable & are_distinctive(hashes))
    # Of the pictures with the same hash, only the first is compared.
    _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
    representatives = rows[first]
    pairs: set[tuple[int, int]] = set()
    for shift in range(0, 64, ROTATION_STEP):
        rotated = (hashes[representatives] << np.uint64(shift)) | (
            hashes[representatives] >> np.uint64((64 - shift) % 64)
        )
        order = representatives[np.argsort(rotated)]
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            left, right = order[:-step], order[step:]
            close = count_bits(hashes[left] ^ hashes[right]) <= MAX_DIFFERENT_BITS
            low, high = np.minimum(left[close], right[close]), np.maximum(left[close], right[close])
            pairs.update(zip(high.tolist(), low.tolist(), strict=True))
    originals = np.full(len(hashes), -1)
    for later, earlier in sorted(pairs):
        if originals[earlier] < 0 and originals[later] < 0:
            originals[later] = earlier
    representative = representatives[group]
    same_hash = np.where(representative == rows, -1, representative)
    originals[rows] = np.where(originals[representative] >= 0, originals[representative], same_hash)
    return originals
