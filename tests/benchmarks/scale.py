"""Overhead of many shards without the cost of models: time and memory per shard, start-up, resuming, rows per second.

    python tests/benchmarks/scale.py                        # 10 to 10,000 shards, tables, pictures; a few minutes
    python tests/benchmarks/scale.py --shards 10 1000       # fewer
    python tests/benchmarks/scale.py --cost --rate 300      # cost of 10 million and a billion pairs

The captioner and the scorer return constants at once. Each number of shards runs in its own process, so that its memory
can be measured. Times are pairs of wall time and processor time; on a busy machine only the second is meaningful.
examples/scale.md draws the conclusions.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
from PIL import Image

from blipcore.io.samples import TarSample
from capfilt.caption import stage as caption_stage
from capfilt.caption.captioner import Caption
from capfilt.caption.stage import CaptionConfig, CaptionStage, caption_shards
from capfilt.filter import registry, score
from capfilt.filter.config import FilterConfig
from capfilt.filter.rewrite import RewriteStage
from capfilt.filter.score import ScoreStage
from capfilt.filter.stage import filter_shards
from capfilt.pictures.read_ahead import ReadAhead
from capfilt.shards.format import CAPTIONS, filtered_schema, write_shard
from capfilt.shards.tables import write_table

# Rows per shard, as in `download` and `pack`.
ROWS = 10_000
VOCABULARY = "a the red dog cat tree with on of two and small picture street house"


class ConstantModel:
    """A captioner and scorer that ignores the pictures."""

    columns = ("itm", "itc")
    uses_backend = False

    def __init__(self, *args: Any, **options: Any) -> None:
        self.name = self.fingerprint = "nothing"

    def prepare(self, image: Image.Image) -> None:
        return None

    def caption(self, inputs: list[None], keys: list[str]) -> list[list[Caption]]:
        return [[Caption(f"a picture of {key}", -1.0)] for key in keys]

    def score(self, inputs: list[None], texts: list[list[str]]) -> dict[str, list[list[float]]]:
        return {column: [[0.5] * len(of_picture) for of_picture in texts] for column in self.columns}


@contextmanager
def no_models() -> Iterator[None]:
    """Replace captioner and scorer by `ConstantModel`."""
    with (
        mock.patch.object(caption_stage, "open_captioner", ConstantModel),
        mock.patch.object(caption_stage, "captioner_fingerprint", lambda *_: "nothing"),
        mock.patch.object(registry, "declare_filter", ConstantModel),
        mock.patch.object(score, "describe_numerics", lambda *_: None),
        mock.patch.object(caption_stage, "describe_numerics", lambda *_: None),
    ):
        yield


class StageTimes:
    """The start of the first shard and the end of the last shard of each stage."""

    def __init__(self, *stages: type):
        self.stages = stages
        self.starts: dict[str, tuple[float, float]] = {}
        self.ends: dict[str, tuple[float, float]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the times of every shard inside the `with` block."""
        originals = {stage: stage.run for stage in self.stages}
        for stage, run in originals.items():
            stage.run = self._recorded(stage.name, run)
        try:
            yield
        finally:
            for stage, run in originals.items():
                stage.run = run

    def _recorded(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            self.starts.setdefault(name, now())
            counts = run(*arguments)
            self.ends[name] = now()
            return counts

        return recorded


def now() -> tuple[float, float]:
    """Return wall time and processor time, in seconds."""
    return time.perf_counter(), time.process_time()


def between(start: tuple[float, float], end: tuple[float, float], share: int = 1) -> list[float]:
    """Return the seconds from `start` to `end`, of both kinds, divided by `share`."""
    return [round((later - earlier) / share, 6) for earlier, later in zip(start, end, strict=True)]


def make_shards(folder: Path, shards: int, pictures: int) -> None:
    """Write one tar of small pictures and hard-link it under the names of all shards, which takes no space."""
    write_shard(folder / "00000.tar", (TarSample(f"{n:09d}", jpeg(n, 16), sentence(n)) for n in range(pictures)))
    for shard in range(1, shards):
        os.link(folder / "00000.tar", folder / f"{shard:05d}.tar")


def run_stages(data: Path) -> dict[str, Any]:
    """Caption and filter a shard set with `ConstantModel`; return the times per step."""
    times = StageTimes(CaptionStage, ScoreStage, RewriteStage)
    shards = len(list(data.glob("*.tar")))
    settings = {"data": str(data), "model": "nothing", "name": "x", "device": "cpu", "dtype": "fp32"}
    seconds: dict[str, Any] = {"shards": shards}
    with no_models(), times.recording():
        start = now()
        caption_shards(CaptionConfig(**settings), progress=False)
        end = now()
        seconds["start"] = between(start, times.starts["caption"])
        seconds["end"] = between(times.ends["caption"], end)
        filter_shards(FilterConfig(**settings), progress=False)
        for name in times.starts:
            seconds[name] = between(times.starts[name], times.ends[name], shards)
        start = now()
        caption_shards(CaptionConfig(**settings), progress=False)
        seconds["caption again"] = between(start, now())
        start = now()
        filter_shards(FilterConfig(**settings), progress=False)
        seconds["filter again"] = between(start, now())
        (data / "captions" / "x" / f"{shards - 1:05d}.parquet").unlink()
        times.starts.clear()
        start = now()
        caption_shards(CaptionConfig(**settings), progress=False)
        seconds["resume"] = between(start, times.starts["caption"])
    seconds["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return seconds


# --- rows, pictures


def sentence(seed: int) -> str:
    """Return a text of nine words, the usual length of a caption in the paper."""
    return " ".join(random.Random(seed).choices(VOCABULARY.split(), k=9))


def jpeg(seed: int, size: int) -> bytes:
    """Return a JPEG of smooth noise, which compresses like a photograph."""
    noise = Image.frombytes("RGB", (size // 8 or 1,) * 2, random.Random(seed).randbytes(3 * (size // 8 or 1) ** 2))
    buffer = io.BytesIO()
    noise.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def table_rates(tables: int = 20) -> dict[str, Any]:
    """Measure rows per second written to tables of 10,000 rows, from Python values to disk, and bytes per row."""
    rng, texts = random.Random(0), [sentence(n) for n in range(ROWS)]
    keys = [f"{n:09d}" for n in range(ROWS)]
    captions = {"key": keys, "index": [0] * ROWS, "text": texts, "logprob": [-rng.random() for _ in keys]}
    captions["error"] = [None] * ROWS
    verdicts = {"key": keys, "source": ["web"] * ROWS, "index": [0] * ROWS, "text": texts}
    verdicts |= {"itm": [rng.random() for _ in keys], "itc": [rng.random() for _ in keys], "keep": [True] * ROWS}
    verdicts |= {"reason": ["kept"] * ROWS, "url": [f"https://host{n % 500}.example/{n}.jpg" for n in range(ROWS)]}
    verdicts |= {"sha256": [f"{rng.getrandbits(256):064x}" for _ in keys]}
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows, schema in (
            ("captions", captions, CAPTIONS),
            ("filtered", verdicts, filtered_schema(["itm", "itc"])),
        ):
            path = Path(folder) / f"{name}.parquet"
            start = now()
            for _ in range(tables):
                write_table(path, pa.table(rows, schema=schema), {"rows": ROWS})
            seconds = between(start, now())
            rates[name] = {
                "rows/s": [round(tables * ROWS / max(one, 1e-9)) for one in seconds],
                "bytes/row": round(path.stat().st_size / ROWS, 1),
            }
    return rates


def picture_rate(pictures: int = 200, size: int = 512) -> dict[str, Any]:
    """Measure pictures per second that one core reads from a tar, decodes and resizes to 384 pixels."""
    from blipcore.data.transforms import EvalTransform

    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "00000.tar"
        write_shard(tar, (TarSample(f"{n:09d}", jpeg(n, size), sentence(n)) for n in range(pictures)))
        start = now()
        for _ in ReadAhead(tar, EvalTransform(384), threads=1):
            pass
        seconds = between(start, now())
        return {"pictures/s": [round(pictures / max(one, 1e-9)) for one in seconds]}


# --- costs


def costs(
    pairs: int, rate: float, price: float, picture_bytes: int, tables: dict[str, Any], read: dict[str, Any]
) -> dict[str, Any]:
    """Return files, space, hours and money for captioning and filtering `pairs` pictures with a text each.

    `rate` is the pictures per second that one GPU captions, and also that it scores; `price` is per GPU-hour;
    `picture_bytes` is the size of a stored picture. `tables` and `read` are the measured rates.
    """
    shards = -(-pairs // ROWS)
    gpu_hours = 2 * pairs / rate / 3600
    table_bytes = pairs * (tables["captions"]["bytes/row"] + 4 * tables["filtered"]["bytes/row"])
    table_seconds = pairs / tables["captions"]["rows/s"][1] + 4 * pairs / tables["filtered"]["rows/s"][1]
    return {
        "pairs": pairs,
        "shards": shards,
        # Tar, its table, captions, scores and verdicts per shard; manifests of the last three.
        "files": 5 * shards + 3,
        "pictures TB": round(pairs * picture_bytes / 1e12, 2),
        # A web text and a caption per picture: two rows of scores and two of verdicts.
        "tables GB": round(table_bytes / 1e9, 1),
        "core hours of tables": round(table_seconds / 3600, 2),
        "core hours of decoding": round(2 * pairs / read["pictures/s"][1] / 3600),
        "cores beside a GPU": round(rate / read["pictures/s"][1], 1),
        "GPU hours": round(gpu_hours),
        "money": round(gpu_hours * price),
    }


def measure(shards: int, pictures: int) -> dict[str, Any]:
    """Run `run_stages` in its own process."""
    command = [sys.executable, __file__, "--one", "--shards", str(shards), "--pictures", str(pictures)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def main() -> None:
    """Print the measurements as JSON, one object per line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--pictures", type=int, default=10, help="per shard")
    parser.add_argument("--one", action="store_true", help="run a single number of shards in this process")
    parser.add_argument("--cost", action="store_true", help="print the cost of 10 million and a billion pairs")
    parser.add_argument("--rate", type=float, default=300.0, help="pictures per second of one GPU")
    parser.add_argument("--price", type=float, default=2.0, help="per hour of that GPU")
    parser.add_argument("--picture-bytes", type=int, default=50_000, help="size of a stored picture; check your shards")
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            make_shards(Path(folder), options.shards[0], options.pictures)
            print(json.dumps(run_stages(Path(folder))))
        return
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}), flush=True)
    tables, read = table_rates(), picture_rate()
    print(json.dumps({"tables": tables, "pictures": read}), flush=True)
    if options.cost:
        for pairs in (10_000_000, 1_000_000_000):
            print(
                json.dumps(costs(pairs, options.rate, options.price, options.picture_bytes, tables, read)), flush=True
            )
        return
    for shards in options.shards:
        print(json.dumps(measure(shards, options.pictures)), flush=True)


if __name__ == "__main__":
    main()
