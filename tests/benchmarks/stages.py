"""Shared parts of the stage benchmarks: test pictures and models, interleaved rounds in processes, the result table.

A contender is a class with `run() -> {"items": ...}`. Each runs in its own process, so that its memory can be measured
and its settings do not affect the others. The contenders take turns in every round; medians over rounds are compared.
"""

import io
import multiprocessing
import resource
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw

from blipcore.checkpoints.save import save_huggingface, save_model
from blipcore.device import count_cores
from blipcore.io.samples import TarSample
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer
from capfilt.engine.worker import Worker
from capfilt.shards.format import write_shard

SHARD = "00000"


def model_config(name: str, image_size: int) -> BlipConfig:
    """Return ViT-B or ViT-L at `image_size` pixels with BERT's text transformer, or a model that takes milliseconds."""
    if name == "small":
        return PRESETS["tiny"]
    config = PRESETS[name]
    return replace(config, vision=replace(config.vision, image_size=image_size, drop_path=0.0))


def save_both(folder: Path, config: BlipConfig, *parts: str) -> None:
    """Save a model of `parts` with random weights as `folder`/blipcore and, for transformers, as `folder`/hf."""
    torch.manual_seed(0)
    model = Blip(config.select_parts(*parts)).eval()
    words = [f"w{i}" for i in range(config.text.vocab_size - len(BERT_SPECIALS) - 2)]
    tokenizer = Tokenizer.from_vocab([*BERT_SPECIALS, *words])
    save_model(folder / "blipcore", model, tokenizer)
    save_huggingface(folder / "hf", model, tokenizer)


def write_pictures(folder: Path, count: int, size: int, words: Callable[[np.random.Generator], str]) -> None:
    """Write one shard of JPEGs of `size` pixels, shapes over noise (about 80 kB at 512 pixels), each with a text."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        noise = rng.normal(128, 40, (size // 4, size // 4, 3)).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(noise).resize((size, size), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, w, h = rng.integers(0, size // 2, 4).tolist()
            pen.ellipse((x, y, x + w + 8, y + h + 8), fill=tuple(rng.integers(0, 256, 3).tolist()))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        pictures.append(TarSample(f"{number:06d}", file.getvalue(), words(rng)))
    write_shard(folder / f"{SHARD}.tar", pictures)


def read_tar(folder: Path, count: int) -> Iterator[tuple[str, Image.Image, str]]:
    """Yield key, picture and text of the first `count` samples, read as in a simple script."""
    sample: dict[str, bytes] = {}
    with tarfile.open(folder / f"{SHARD}.tar") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            sample[suffix] = tar.extractfile(member).read()
            if len(sample) == 2:
                yield key, Image.open(io.BytesIO(sample["jpg"])).convert("RGB"), sample["txt"].decode()
                sample, count = {}, count - 1
                if count == 0:
                    return


# --- operations


def matmul_rate(device: str, dtype: str) -> float:
    """Return the operations per second of a large matrix product, the best of six: the upper bound of this machine."""
    n = 8192 if device == "cuda" else 2048
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def image_operations(config: BlipConfig) -> float:
    """Return the operations per picture: image encoder, keys and values of all text layers; two per multiply-add."""
    vision, text = config.vision, config.text
    W, N = vision.width, 1 + (vision.image_size // vision.patch_size) ** 2
    patches = 2 * (N - 1) * 3 * vision.patch_size**2 * W
    layer = 2 * N * W * W * (4 + 2 * vision.mlp_ratio) + 4 * N * N * W
    return patches + vision.depth * layer + text.depth * 2 * N * W * 2 * text.width


def token_operations(config: BlipConfig, image: bool, head: bool) -> float:
    """Return the operations per text token: all layers, optionally cross-attention (`image`) and logits (`head`)."""
    text, N = config.text, 1 + (config.vision.image_size // config.vision.patch_size) ** 2
    D = text.width
    layer = 2 * D * (4 * D + 2 * text.hidden) + (4 * D * D + 4 * N * D if image else 0)
    return text.depth * layer + (2 * D * (D + text.vocab_size) if head else 0)


# --- contenders


@dataclass
class Contender:
    """An implementation to time: `kind(**options)` in its own process. Its `run()` does `operations` per item."""

    name: str
    dtype: str
    kind: type
    options: dict[str, Any]
    operations: float


class ContenderProcess:
    """The process of one contender."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        arguments = (child_pipe, contender.kind, contender.options)
        self.process = context.Process(target=serve_contender, args=arguments, daemon=True)
        self.process.start()
        child_pipe.close()

    def run(self) -> dict[str, Any]:
        """Run once and return items, seconds, peak_gib and the contender's own results."""
        self.pipe.send("run")
        result = self.pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(30)


def serve_contender(pipe: Connection, kind: type, options: dict[str, Any]) -> None:
    """Build a contender and run it once per message, until the parent closes the pipe."""
    try:
        contender = kind(**options)
        while pipe.recv():
            started = time.perf_counter()
            result = contender.run()
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            pipe.send({"seconds": seconds, "peak_gib": peak, **result})
    except EOFError:
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"{kind.__name__}: {error!r}"))


def fastest_batch(sizes: list[int], run: Callable[[int], None]) -> int:
    """Return the batch size with the least time per item. `run(n)` is called once to warm up, then once per size."""
    run(1)
    seconds_per_item = {}
    for size in sizes:
        started = time.perf_counter()
        run(size)
        seconds_per_item[size] = (time.perf_counter() - started) / size
    return min(seconds_per_item, key=lambda size: seconds_per_item[size])


def compete(contenders: list[Contender], rounds: int, device: str) -> list[dict[str, Any]]:
    """Return one row per contender: median items per second, spread, share of the matrix rate, memory."""
    processes = [ContenderProcess(contender) for contender in contenders]
    try:
        for process in processes:
            process.run()  # warm-up: loads, compiles, chooses the batch size
        results: list[list[dict[str, Any]]] = [[] for _ in contenders]
        rates: dict[str, list[float]] = {contender.dtype: [] for contender in contenders}
        for _ in range(rounds):
            for i, (contender, process) in enumerate(zip(contenders, processes, strict=True)):
                rates[contender.dtype].append(matmul_rate(device, contender.dtype))
                results[i].append(process.run())
    finally:
        for process in processes:
            process.stop()
    rows = []
    for contender, runs in zip(contenders, results, strict=True):
        seconds = [run["seconds"] / run["items"] for run in runs]
        rate = statistics.median(rates[contender.dtype])
        rows.append(
            {
                "path": contender.name,
                "dtype": contender.dtype,
                "per_second": 1 / statistics.median(seconds),
                "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
                "gflop": contender.operations / 1e9,
                "rate_gflops": rate / 1e9,
                "of_rate": contender.operations / statistics.median(seconds) / rate,
                "wait_share": statistics.median(run["wait_share"] for run in runs) if "wait_share" in runs[0] else None,
                "batch_size": runs[-1]["batch_size"],
                "peak_gib": max(run["peak_gib"] for run in runs),
            }
        )
    return rows


def run_stage(stage: Any, device: str, items: str, column: str) -> dict[str, Any]:
    """Run a capfilt stage on the shard. `items` is the name of its count; `column` of its table is returned too."""
    counts = stage.run(SHARD, Worker(device=device, cores=count_cores()))
    table = stage.output(SHARD)
    values = pq.read_table(table)[column].to_pylist()
    table.unlink()
    wait_share = counts["waited_ms"] / max(1, counts["busy_ms"])
    return {"items": counts[items], "batch_size": stage.config.batch_size, "wait_share": wait_share, column: values}


def show(result: dict[str, Any], unit: str, peers: list[str]) -> None:
    """Print the table, with the speed of each contender as a multiple of each of the `peers` that was timed."""
    rows = result["rows"]
    rates = {row["dtype"]: row["rate_gflops"] for row in rows}
    print(
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}; "
        f"matrix products: {', '.join(f'{dtype} {rate:.0f} GFLOP/s' for dtype, rate in rates.items())}"
    )
    print(result["work"])
    print()
    speeds = {f"{row['path']} {row['dtype']}": row["per_second"] for row in rows}
    peers = [peer for peer in peers if peer in speeds]
    ratios = "".join(f" x {peer} |" for peer in peers)
    print(f"| path | precision | batch | {unit}/s | spread |{ratios} of matrix rate | waits for data | peak GiB |")
    print("|---" * (8 + len(peers)) + "|")
    for row in rows:
        against = "".join(f" {row['per_second'] / speeds[peer]:.2f} |" for peer in peers)
        waits = "-" if row["wait_share"] is None else f"{row['wait_share']:.1%}"
        print(
            f"| {row['path']} | {row['dtype']} | {row['batch_size']} | {row['per_second']:.3g} | {row['spread']:.0%} |"
            f"{against} {row['of_rate']:.0%} | {waits} | {row['peak_gib']:.1f} |"
        )
