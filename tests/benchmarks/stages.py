"""What the benchmarks of whole stages share: pictures in a tar, one model in two formats, rounds of processes, a table.

A contender is a class with `run() -> {"items": …}`, built in a process of its own, so that its memory is its own and
nothing it sets reaches the others. All take turns, round after round; what is compared are medians over the rounds.
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
from blipcore.io.samples import Picture
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig
from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer
from capfilt.engine.worker import Stage
from capfilt.shards.format import write_shard

SHARD = "00000"


def model_config(name: str, image_size: int) -> BlipConfig:
    """ViT-B or ViT-L at `image_size` pixels with BERT's text body; "small" takes milliseconds."""
    if name == "small":
        return PRESETS["tiny"]
    config = PRESETS[name]
    return replace(config, vision=replace(config.vision, image_size=image_size, drop_path=0.0))


def save_both(folder: Path, config: BlipConfig, *parts: str) -> None:
    """A model of `parts` with random weights as `folder`/blipcore and, for transformers, as `folder`/hf."""
    torch.manual_seed(0)
    model = Blip(config.only(*parts)).eval()
    words = [f"w{i}" for i in range(config.text.vocab_size - len(BERT_SPECIALS) - 2)]
    tokenizer = Tokenizer.from_vocab([*BERT_SPECIALS, *words])
    save_model(folder / "blipcore", model, tokenizer)
    save_huggingface(folder / "hf", model, tokenizer)


def write_pictures(folder: Path, count: int, size: int, words: Callable[[np.random.Generator], str]) -> None:
    """One shard of JPEGs of `size` pixels, shapes over noise (some 80 kB at 512 pixels), with a text each."""
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
        pictures.append(Picture(f"{number:06d}", file.getvalue(), words(rng)))
    write_shard(folder / f"{SHARD}.tar", pictures)


def read_tar(folder: Path, count: int) -> Iterator[tuple[str, Image.Image, str]]:
    """Key, picture and text of the first `count` samples, as a script would read them."""
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


# ------------------------------------------------------------------------------------------------- operations


def matmul_rate(device: str, dtype: str) -> float:
    """Operations per second of a large matrix product, the best of several: what this machine can do at all."""
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
    """Of one picture: image encoder, then keys and values for every text layer; twice the multiply-adds."""
    vision, text = config.vision, config.text
    W, N = vision.width, 1 + (vision.image_size // vision.patch_size) ** 2
    patches = 2 * (N - 1) * 3 * vision.patch_size**2 * W
    layer = 2 * N * W * W * (4 + 2 * vision.mlp_ratio) + 4 * N * N * W
    return patches + vision.depth * layer + text.depth * 2 * N * W * 2 * text.width


def token_operations(config: BlipConfig, image: bool, head: bool) -> float:
    """Of one text token: all layers, with or without cross-attention, and the vocabulary's scores if asked."""
    text, N = config.text, 1 + (config.vision.image_size // config.vision.patch_size) ** 2
    D = text.width
    layer = 2 * D * (4 * D + 2 * text.hidden) + (4 * D * D + 4 * N * D if image else 0)
    return text.depth * layer + (2 * D * (D + text.vocab_size) if head else 0)


# ------------------------------------------------------------------------------------------------- contenders


@dataclass
class Contender:
    """What is timed: `kind(**options)` is built in another process, and its `run()` does `operations` an item."""

    name: str
    dtype: str
    kind: type
    options: dict[str, Any]
    operations: float


class Process:
    """A contender at work in a process of its own."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, contender.kind, contender.options), daemon=True)
        self.process.start()
        theirs.close()

    def run(self) -> dict[str, Any]:
        """One run: items, seconds, peak_gib and what else the contender tells."""
        self.pipe.send("run")
        told = self.pipe.recv()
        if isinstance(told, Exception):
            raise told
        return told

    def end(self) -> None:
        self.pipe.close()
        self.process.join(30)


def serve(pipe: Connection, kind: type, options: dict[str, Any]) -> None:
    """Build a contender and run it whenever told, until the other end is closed."""
    try:
        contender = kind(**options)
        while pipe.recv():
            started = time.perf_counter()
            told = contender.run()
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            pipe.send({"seconds": seconds, "peak_gib": peak, **told})
    except EOFError:
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"{kind.__name__}: {error!r}"))


def fastest_batch(sizes: list[int], run: Callable[[int], None]) -> int:
    """The batch size at which `run(n)` takes least time for an item, each tried once after a first call."""
    run(1)
    spent = {}
    for size in sizes:
        started = time.perf_counter()
        run(size)
        spent[size] = (time.perf_counter() - started) / size
    return min(spent, key=spent.get)


def compete(contenders: list[Contender], rounds: int, device: str) -> list[dict[str, Any]]:
    """A row for each: items a second (median over the rounds), their spread, and the rest of what the runs tell."""
    processes = [Process(contender) for contender in contenders]
    try:
        for process in processes:
            process.run()  # loads, compiles, chooses its batch size
        told: list[list[dict[str, Any]]] = [[] for _ in contenders]
        rates: dict[str, list[float]] = {contender.dtype: [] for contender in contenders}
        for _ in range(rounds):
            for i, (contender, process) in enumerate(zip(contenders, processes, strict=True)):
                rates[contender.dtype].append(matmul_rate(device, contender.dtype))
                told[i].append(process.run())
    finally:
        for process in processes:
            process.end()
    rows = []
    for contender, runs in zip(contenders, told, strict=True):
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


def run_stage(stage: Stage, items: str, column: str) -> dict[str, Any]:
    """One run of a stage of ours over the shard, `items` being what it counts; its table's `column` goes along."""
    counts = stage.run(SHARD)
    table = stage.output(SHARD)
    made = pq.read_table(table)[column].to_pylist()
    table.unlink()
    waited = counts["waited_ms"] / max(1, counts["busy_ms"])  # of its time, what the model waited for pictures
    return {"items": counts[items], "batch_size": stage.config.batch_size, "wait_share": waited, column: made}


def show(result: dict[str, Any], unit: str, peers: list[str], say: Callable[[str], None] = print) -> None:
    """The table, with every path's speed as multiples of the `peers` that were timed."""
    rows = result["rows"]
    rates = {row["dtype"]: row["rate_gflops"] for row in rows}
    say(
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}; "
        f"matrix products: {', '.join(f'{dtype} {rate:.0f} GFLOP/s' for dtype, rate in rates.items())}"
    )
    say(result["work"])
    say("")
    there = {f"{row['path']} {row['dtype']}": row["per_second"] for row in rows}
    peers = [peer for peer in peers if peer in there]
    ratios = "".join(f" x {peer} |" for peer in peers)
    say(f"| path | precision | batch | {unit}/s | spread |{ratios} of matrix products | waits for data | peak GiB |")
    say("|---" * (8 + len(peers)) + "|")
    for row in rows:
        against = "".join(f" {row['per_second'] / there[peer]:.2f} |" for peer in peers)
        waits = "-" if row["wait_share"] is None else f"{row['wait_share']:.1%}"
        say(
            f"| {row['path']} | {row['dtype']} | {row['batch_size']} | {row['per_second']:.3g} | {row['spread']:.0%} |"
            f"{against} {row['of_rate']:.0%} | {waits} | {row['peak_gib']:.1f} |"
        )
