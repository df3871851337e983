"""Many small shards, where the time between two of them counts: with the next shard read ahead and without, in turns.

`capfilt caption` with a small model, on a local folder and on a loopback S3 server that answers late, as a distant one
does; without, the engine tells workers nothing of what is next. Needs the extras s3 and moto.

    python tests/benchmarks/small_shards.py [--shards 40 --pictures 32 --latency 0.03 --rounds 3]
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import stages
from s3 import Store, upload

from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.engine import run as engine


class Late(Store):
    """A store that thinks for `seconds` about every request."""

    seconds = 0.0

    def _gate(self, *request):
        time.sleep(self.seconds)
        return super()._gate(*request)


def serve(pipe: Connection) -> None:
    """Be the store: say where, then take the latency, until the other end is closed."""
    store = Late()
    pipe.send(store.variables)
    try:
        while True:
            store.seconds = pipe.recv()
    except EOFError:
        store.close()


def make_shards(folder: Path, shards: int, pictures: int, size: int) -> None:
    """One tar of JPEGs under many names."""
    stages.write_pictures(folder, pictures, size, lambda rng: "a picture")
    for shard in range(1, shards):
        os.link(folder / f"{stages.SHARD}.tar", folder / f"{shard:05d}.tar")


def caption(data: str, model: Path, out: Path, ahead: bool) -> dict[str, float]:
    """One run of all shards: seconds, and the share of the shards' time in which the model waited for pictures."""
    config = CaptionConfig(data, str(model), out=str(out), device="cpu", dtype="fp32", batch_size=16)
    without = nullcontext() if ahead else mock.patch.object(engine, "upcoming", lambda: None)
    with without:
        told = caption_shards(config, progress=False)
    return {"seconds": told["seconds"], "share": told["data_wait_share"]}


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    rows = []
    pipe, theirs = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True).start()
    os.environ.update(pipe.recv())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stages.save_both(work, stages.model_config("small", 0), "decode")
        make_shards(work / "data", args.shards, args.pictures, args.picture_size)
        upload(work / "data", "s3://bucket/data")
        pipe.send(args.latency)
        ways = [(where, ahead) for where in (str(work / "data"), "s3://bucket/data") for ahead in (False, True)]
        told: dict[tuple[str, bool], list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(args.rounds + 1):
            for place, (where, ahead) in enumerate(ways):
                run = caption(where, work / "blipcore", work / f"out-{number}-{place}", ahead)
                if number:  # the first round loads libraries
                    told[where, ahead].append(run)
        for (where, ahead), runs in told.items():
            medians = {name: statistics.median(run[name] for run in runs) for name in ("seconds", "share")}
            rows.append({"where": "S3" if where.startswith("s3") else "local", "ahead": ahead, **medians})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=32, help="a shard")
    parser.add_argument("--picture-size", type=int, default=128, help="pixels")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds before the store answers a request")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| shards | read ahead | seconds | waits for pictures |\n|---|---|---|---|")
    for row in measure(args):
        print(f"| {row['where']} | {'yes' if row['ahead'] else 'no'} | {row['seconds']:.2f} | {row['share']:.1%} |")


if __name__ == "__main__":
    main()
