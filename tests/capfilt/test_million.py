"""Time and memory of the report and of a new threshold for a million pairs, in synthetic tables.

`pytest -m slow -s tests/capfilt/test_million.py` prints the measurements.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from capfilt.shards.format import CAPTIONS, IMAGES, scores_schema
from capfilt.shards.manifest import Manifest
from capfilt.shards.tables import write_table

pytestmark = pytest.mark.slow
SHARDS, PICTURES = 100, 5_000  # each picture has a web text and a caption


def write_million(folder: Path) -> Path:
    """Write a shard set with empty tars, and captions and scores for it."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(30_000)])
    pool = [" ".join(words[np.minimum(rng.zipf(1.4, size), 29_999)]) for size in rng.integers(3, 18, 100_000)]
    texts, hexes = pa.array(pool), pa.array([rng.bytes(32).hex() for _ in range(50_000)])
    hosts = [f"https://img{n}.example{n % 53}.com/photos/" for n in range(977)]
    nulls = pa.nulls(2 * PICTURES, pa.string())
    for shard in range(SHARDS):
        name, keys = f"{shard:05d}", [f"{shard:05d}{number:04d}" for number in range(PICTURES)]
        web, captions = (texts.take(pa.array(rng.integers(0, len(texts), PICTURES))) for _ in range(2))
        rows = {field.name: pa.nulls(PICTURES, field.type) for field in IMAGES} | {
            "key": keys,
            "url": [f"{hosts[n]}{key}.jpg" for n, key in zip(rng.integers(0, 977, PICTURES), keys, strict=True)],
            "status": ["ok"] * PICTURES,
            "sha256": hexes.take(pa.array(rng.integers(0, len(hexes), PICTURES))),
        }
        write_table(folder / f"{name}.parquet", pa.table(rows, schema=IMAGES))
        (folder / f"{name}.tar").write_bytes(bytes(1024))
        caption_columns = [
            keys,
            np.zeros(PICTURES, np.int32),
            captions,
            np.zeros(PICTURES, np.float32),
            nulls[:PICTURES],
        ]
        write_table(folder / "captions" / "c" / f"{name}.parquet", pa.table(caption_columns, schema=CAPTIONS))
        scores = [
            rng.beta(0.5, 0.5, 2 * PICTURES),
            rng.normal(0.3, 0.1, 2 * PICTURES),
            rng.normal(0.25, 0.05, 2 * PICTURES),
        ]
        columns = [[*keys, *keys], ["web"] * PICTURES + ["c"] * PICTURES, np.zeros(2 * PICTURES, np.int32)]
        columns += [pa.concat_arrays([web, captions]), *(values.astype(np.float32) for values in scores), nulls]
        schema = pa.schema([*scores_schema(["itm", "itc", "clip"]), ("error", pa.string())])
        write_table(
            folder / "scores" / "s" / f"{name}.parquet", pa.table(columns, schema=schema), {"texts": 2 * PICTURES}
        )
    settings = {"sources": {"web": "in the shards", "c": "not recorded"}, "fingerprint": "0", "first_token": "enc"}
    settings |= {"dtype": "fp32", "clip": {"fingerprint": "1"}}
    Manifest.begin(folder / "scores" / "s", "score", settings, images=folder).finish({"texts": 2 * PICTURES * SHARDS})
    return folder


def run(*arguments: str) -> tuple[dict, float, float]:
    """Return the summary of a command, and wall-clock and CPU seconds of its process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "capfilt", *arguments, "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    after, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return json.loads(process.stdout), clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_million_pairs(tmp_path: Path) -> None:
    data = write_million(tmp_path / "data")
    for name in ("r0", "r1"):  # the first run also fills the page cache
        decided, clock, cpu = run("filter", str(data), "--scores", "s", "--name", name, "--threshold", "0.4")
        print(f"\nnew threshold: {decided['seconds']:.2f} s, with start-up {clock:.2f} s, {cpu:.2f} s of CPU")
    assert decided["texts"] == 2 * PICTURES * SHARDS
    # CPU time, as the machine may be busy. On two idle cores of an EPYC: 2.0 s of clock, 2.6 s with start-up.
    assert cpu < 12
    other = run("filter", str(data), "--scores", "s", "--name", "r2", "--threshold", "0.7")[0]["out"]
    for compared in ((), ("--compare", other)):
        summary, clock, cpu = run("report", decided["out"], *compared, "--out", str(tmp_path / "report.html"))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        measured = (
            f"{summary['seconds']:.2f} s, with start-up {clock:.2f} s, {cpu:.1f} s of CPU, {peak:.0f} MiB at most"
        )
        print(f"report {' '.join(compared[:1])}: {measured}, {summary['bytes']:,} bytes")
        assert summary["datasets"][-1]["texts"] == 2 * PICTURES * SHARDS
        assert cpu < 60 and peak < 1024 and summary["bytes"] < 5_000_000
