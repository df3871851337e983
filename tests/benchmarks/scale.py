"""What many shards cost where no model does: time and memory a shard, start-up, resuming, rows a second.

    python tests/benchmarks/scale.py                        # 10 to 10,000 shards, tables, pictures; some minutes
    python tests/benchmarks/scale.py --shards 10 1000       # fewer
    python tests/benchmarks/scale.py --cost --rate 300      # what 10 million and a billion pairs come to

Captions and scores are made by models that answer at once, so what is left is the tool's own. Each number of shards
runs in a process of its own, whose memory is then its own. Seconds are of the clock and, beside them, of the processor:
on a busy machine believe the second. examples/scale.md says what follows from them.
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

from blipcore.io.samples import Picture
from capfilt.caption import stage as caption
from capfilt.caption.stage import CaptionConfig, CaptionStage, caption_shards
from capfilt.filter import blip as scorer_blip
from capfilt.filter import score
from capfilt.filter.config import FilterConfig
from capfilt.filter.rewrite import RewriteStage
from capfilt.filter.score import ScoreStage
from capfilt.filter.stage import filter_shards
from capfilt.pictures.read_ahead import ReadAhead
from capfilt.shards.format import CAPTIONS, filtered_schema, write_shard
from capfilt.shards.tables import write_table

ROWS = 10_000  # to a shard, as `download` and `pack` make them
WORDS = [
    "a",
    "the",
    "red",
    "dog",
    "cat",
    "tree",
    "with",
    "on",
    "of",
    "two",
    "and",
    "small",
    "picture",
    "street",
    "house",
]


class Answers:
    """A captioner and a scorer that look at nothing."""

    columns = ("itm", "itc")

    def __init__(self, *args: Any, **options: Any) -> None:
        self.name = self.fingerprint = "nothing"

    def prepare(self, image: Image.Image) -> None:
        return None

    def caption(self, inputs: list[None], keys: list[str]) -> list[list[tuple[str, float]]]:
        return [[(f"a picture of {key}", -1.0)] for key in keys]

    def score(self, inputs: list[None], texts: list[list[str]]) -> dict[str, list[list[float]]]:
        return {column: [[0.5] * len(of_picture) for of_picture in texts] for column in self.columns}


@contextmanager
def no_models() -> Iterator[None]:
    """Inside, caption and filter answer without a model."""
    with (
        mock.patch.object(caption, "open_captioner", Answers),
        mock.patch.object(caption, "captioner_fingerprint", lambda *_: "nothing"),
        mock.patch.object(scorer_blip, "BlipScorer", Answers),
        mock.patch.object(score, "fingerprint", lambda *_: "nothing"),
    ):
        yield


class Times:
    """When the shards of a run began and ended: the first, the last, and what lies between."""

    def __init__(self, *stages: type):
        self.stages = stages
        self.begun: dict[str, tuple[float, float]] = {}
        self.ended: dict[str, tuple[float, float]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the stages tell when they do a shard."""
        originals = {stage: stage.run for stage in self.stages}
        for stage, run in originals.items():
            stage.run = self._telling(stage.name, run)
        try:
            yield
        finally:
            for stage, run in originals.items():
                stage.run = run

    def _telling(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def told(stage: Any, shard: str) -> Any:
            self.begun.setdefault(name, now())
            counts = run(stage, shard)
            self.ended[name] = now()
            return counts

        return told


def now() -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def between(start: tuple[float, float], end: tuple[float, float], share: int = 1) -> list[float]:
    """Seconds of both kinds from `start` to `end`, divided by `share`."""
    return [round((later - earlier) / share, 6) for earlier, later in zip(start, end, strict=True)]


def make_shards(folder: Path, shards: int, pictures: int) -> None:
    """One tar of little pictures under many names: they cost no space."""
    write_shard(folder / "00000.tar", (Picture(f"{n:09d}", jpeg(n, 16), sentence(n)) for n in range(pictures)))
    for shard in range(1, shards):
        os.link(folder / "00000.tar", folder / f"{shard:05d}.tar")


def run_stages(data: Path) -> dict[str, Any]:
    """Caption and filter a shard set without models: seconds by what they went into."""
    times = Times(CaptionStage, ScoreStage, RewriteStage)
    shards = len(list(data.glob("*.tar")))
    settings = {"data": str(data), "model": "nothing", "name": "x", "device": "cpu", "dtype": "fp32"}
    told: dict[str, Any] = {"shards": shards}
    with no_models(), times.watched():
        begun = now()
        caption_shards(CaptionConfig(**settings), progress=False)
        ended = now()
        told["start"] = between(begun, times.begun["caption"])
        told["end"] = between(times.ended["caption"], ended)
        filter_shards(FilterConfig(**settings), progress=False)
        for name in times.begun:
            told[name] = between(times.begun[name], times.ended[name], shards)
        begun = now()
        caption_shards(CaptionConfig(**settings), progress=False)
        told["caption again"] = between(begun, now())
        begun = now()
        filter_shards(FilterConfig(**settings), progress=False)
        told["filter again"] = between(begun, now())
        (data / "captions" / "x" / f"{shards - 1:05d}.parquet").unlink()
        times.begun.clear()
        begun = now()
        caption_shards(CaptionConfig(**settings), progress=False)
        told["resume"] = between(begun, times.begun["caption"])
    told["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return told


# ---------------------------------------------------------------------------------------------------- rows, pictures


def sentence(seed: int) -> str:
    """About nine words, as a caption of the paper has."""
    return " ".join(random.Random(seed).choices(WORDS, k=9))


def jpeg(seed: int, size: int) -> bytes:
    """A picture of soft noise, which compresses like a photograph rather than like a drawing."""
    noise = Image.frombytes("RGB", (size // 8 or 1,) * 2, random.Random(seed).randbytes(3 * (size // 8 or 1) ** 2))
    buffer = io.BytesIO()
    noise.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def table_rates(tables: int = 20) -> dict[str, Any]:
    """Rows a second into tables of 10,000 rows, from Python values and synced to disk; bytes a row."""
    rng, texts = random.Random(0), [sentence(n) for n in range(ROWS)]
    keys = [f"{n:09d}" for n in range(ROWS)]
    captions = {"key": keys, "index": [0] * ROWS, "text": texts, "logprob": [-rng.random() for _ in keys]}
    captions["error"] = [None] * ROWS
    verdicts = {"key": keys, "source": ["web"] * ROWS, "index": [0] * ROWS, "text": texts}
    verdicts |= {"itm": [rng.random() for _ in keys], "itc": [rng.random() for _ in keys], "keep": [True] * ROWS}
    verdicts |= {"reason": ["kept"] * ROWS, "url": [f"https://host{n % 500}.example/{n}.jpg" for n in range(ROWS)]}
    verdicts |= {"sha256": [f"{rng.getrandbits(256):064x}" for _ in keys]}
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows, schema in (
            ("captions", captions, CAPTIONS),
            ("filtered", verdicts, filtered_schema(["itm", "itc"])),
        ):
            path = Path(folder) / f"{name}.parquet"
            begun = now()
            for _ in range(tables):
                write_table(path, pa.table(rows, schema=schema), {"rows": ROWS})
            seconds = between(begun, now())
            told[name] = {
                "rows/s": [round(tables * ROWS / max(one, 1e-9)) for one in seconds],
                "bytes/row": round(path.stat().st_size / ROWS, 1),
            }
    return told


def picture_rate(pictures: int = 200, size: int = 512) -> dict[str, Any]:
    """Pictures a second that one core reads from a tar, decodes and fits to a model's 384 pixels."""
    from blipcore.data.transforms import eval_transform

    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "00000.tar"
        write_shard(tar, (Picture(f"{n:09d}", jpeg(n, size), sentence(n)) for n in range(pictures)))
        begun = now()
        for _ in ReadAhead(tar, eval_transform(384), threads=1):
            pass
        seconds = between(begun, now())
        return {"pictures/s": [round(pictures / max(one, 1e-9)) for one in seconds]}


# ---------------------------------------------------------------------------------------------------- what it comes to


def costs(
    pairs: int, rate: float, price: float, picture_bytes: int, tables: dict[str, Any], read: dict[str, Any]
) -> dict[str, Any]:
    """Files, space, hours and money of captioning and filtering so many pairs, from rates measured and given.

    `rate` is pictures a second that one GPU captions, and as many that it scores, `price` that of its hour, and
    `picture_bytes` what a stored picture takes.
    """
    shards = -(-pairs // ROWS)
    gpu_hours = 2 * pairs / rate / 3600
    table_bytes = pairs * (tables["captions"]["bytes/row"] + 4 * tables["filtered"]["bytes/row"])
    table_seconds = pairs / tables["captions"]["rows/s"][1] + 4 * pairs / tables["filtered"]["rows/s"][1]
    return {
        "pairs": pairs,
        "shards": shards,
        "files": 5 * shards + 3,  # tar, its table, captions, scores, verdicts; a manifest for each of the last three
        "pictures TB": round(pairs * picture_bytes / 1e12, 2),
        "tables GB": round(
            table_bytes / 1e9, 1
        ),  # a web text and a caption a picture: two rows of scores, two verdicts
        "core hours of tables": round(table_seconds / 3600, 2),
        "core hours of decoding": round(2 * pairs / read["pictures/s"][1] / 3600),
        "cores beside a GPU": round(rate / read["pictures/s"][1], 1),
        "GPU hours": round(gpu_hours),
        "money": round(gpu_hours * price),
    }


def measure(shards: int, pictures: int) -> dict[str, Any]:
    """`run_stages` in a process of its own."""
    command = [sys.executable, __file__, "--one", "--shards", str(shards), "--pictures", str(pictures)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def main() -> None:
    """Measure what is asked for and print it as JSON, an object a line."""
    parser = argparse.ArgumentParser(description="What many shards cost where no model does.")
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--pictures", type=int, default=10, help="to a shard; few, for the shards are the question")
    parser.add_argument("--one", action="store_true", help="in this process, without tables and pictures")
    parser.add_argument("--cost", action="store_true", help="what 10 million and a billion pairs come to")
    parser.add_argument("--rate", type=float, default=300.0, help="pictures a second of one GPU")
    parser.add_argument("--price", type=float, default=2.0, help="of an hour of that GPU")
    parser.add_argument("--picture-bytes", type=int, default=50_000, help="of a stored picture; look at your shards")
    asked = parser.parse_args()
    if asked.one:
        with tempfile.TemporaryDirectory() as folder:
            make_shards(Path(folder), asked.shards[0], asked.pictures)
            print(json.dumps(run_stages(Path(folder))))
        return
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}), flush=True)
    tables, read = table_rates(), picture_rate()
    print(json.dumps({"tables": tables, "pictures": read}), flush=True)
    if asked.cost:
        for pairs in (10_000_000, 1_000_000_000):
            print(json.dumps(costs(pairs, asked.rate, asked.price, asked.picture_bytes, tables, read)), flush=True)
        return
    for shards in asked.shards:
        print(json.dumps(measure(shards, asked.pictures)), flush=True)


if __name__ == "__main__":
    main()
