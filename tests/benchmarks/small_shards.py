"""Effect of reading the next shard ahead, on many small shards, where the time between two shards matters.

Runs `capfilt caption` with a small model, with and without reading ahead in turn, on a local folder and on a local S3
server with added latency. The server is in tests/helpers and needs moto and the extra s3.

    PYTHONPATH=tests/helpers python tests/benchmarks/small_shards.py [--shards 40 --latency 0.03 --rounds 3]
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import stages
from s3 import S3Server, upload

from capfilt.caption.stage import CaptionConfig, CaptionStage, caption_shards
from capfilt.engine.worker import Worker


class SlowServer(S3Server):
    """An S3 server that waits `latency` seconds before each answer."""

    latency = 0.0

    def _handle(self, *request: Any) -> Any:
        time.sleep(self.latency)
        return super()._handle(*request)


def serve_s3(pipe: Connection) -> None:
    """Run a server: send its environment variables, then receive latencies until the parent closes the pipe."""
    server = SlowServer()
    pipe.send(server.variables)
    try:
        while True:
            server.latency = pipe.recv()
    except EOFError:
        server.close()


def make_shards(folder: Path, shards: int, pictures: int, size: int) -> None:
    """Write one tar of JPEGs and hard-link it under the names of all shards."""
    stages.write_pictures(folder, pictures, size, lambda rng: "a picture")
    for shard in range(1, shards):
        os.link(folder / f"{stages.SHARD}.tar", folder / f"{shard:05d}.tar")


def caption(data: str, model: Path, out: Path, read_ahead: bool) -> dict[str, float]:
    """Caption all shards and return the seconds and the share of them in which the model waited for pictures."""
    config = CaptionConfig(data, str(model), out=str(out), device="cpu", dtype="fp32", batch_size=16)
    run = CaptionStage.run

    def run_alone(stage: CaptionStage, shard: str, worker: Worker) -> dict[str, int]:
        return run(stage, shard, replace(worker, next_shard=None))

    with mock.patch.object(CaptionStage, "run", run if read_ahead else run_alone):
        summary = caption_shards(config, progress=False)
    return {"seconds": summary["seconds"], "share": summary["data_wait_share"]}


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    rows = []
    pipe, child_pipe = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=serve_s3, args=(child_pipe,), daemon=True).start()
    os.environ.update(pipe.recv())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stages.save_both(work, stages.model_config("small", 0), "decode")
        make_shards(work / "data", args.shards, args.pictures, args.picture_size)
        upload(work / "data", "s3://bucket/data")
        pipe.send(args.latency)
        variants = [
            (data, read_ahead) for data in (str(work / "data"), "s3://bucket/data") for read_ahead in (False, True)
        ]
        runs: dict[tuple[str, bool], list[dict[str, float]]] = {variant: [] for variant in variants}
        for number in range(args.rounds + 1):
            for index, (data, read_ahead) in enumerate(variants):
                run = caption(data, work / "blipcore", work / f"out-{number}-{index}", read_ahead)
                # The first round loads libraries and is not counted.
                if number:
                    runs[data, read_ahead].append(run)
        for (data, read_ahead), results in runs.items():
            medians = {name: statistics.median(result[name] for result in results) for name in ("seconds", "share")}
            rows.append({"shards": "S3" if data.startswith("s3") else "local", "read_ahead": read_ahead, **medians})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=32, help="per shard")
    parser.add_argument("--picture-size", type=int, default=128, help="pixels")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds per S3 request")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| shards | read ahead | seconds | waits for pictures |\n|---|---|---|---|")
    for row in measure(args):
        print(
            f"| {row['shards']} | {'yes' if row['read_ahead'] else 'no'} | {row['seconds']:.2f} | {row['share']:.1%} |"
        )


if __name__ == "__main__":
    main()
