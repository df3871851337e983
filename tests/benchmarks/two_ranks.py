"""Speed-up of training with two single-threaded processes over one.

    python tests/benchmarks/two_ranks.py [--preset tiny] [--batch-size 32] [--steps 40] [--rounds 5] [--workers 0]

Runs `capfilt pretrain --nproc 1` and `--nproc 2` in turn on drawn pictures, with the same batch size per
process, and compares the median pictures per second of the second half of each run, which excludes start-up. The goal
on two free cores is 1.7. Measured with `--rounds 3` on two cores of an AMD EPYC: 101.0 and 186.3 pictures per second,
a speed-up of 1.85.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "white", "yellow", "purple", "orange", "black")


def draw_pictures(folder: Path, count: int = 256) -> Path:
    """Draw pictures into a folder and return their annotation file."""
    rows = []
    for number in range(count):
        background, shape = COLOURS[number % 8], COLOURS[number // 8 % 8]
        image = Image.new("RGB", (96, 96), background)
        ImageDraw.Draw(image).ellipse((number % 40, number // 4 % 40, 60 + number % 30, 80), fill=shape)
        image.save(folder / f"{number}.jpg")
        rows.append(
            {"image": f"{number}.jpg", "caption": f"a {shape} circle, number {number}, on a {background} background"}
        )
    (folder / "pictures.json").write_text(json.dumps(rows))
    return folder / "pictures.json"


def pictures_per_second(nproc: int, data: Path, out: Path, options: argparse.Namespace) -> float:
    """Train once and return the pictures per second of the second half."""
    command = [sys.executable, "-m", "capfilt", "pretrain", str(data), "--out", str(out), "--nproc", str(nproc)]
    command += ["--preset", options.preset, "--tokenizer", "train:300", "--device", "cpu", "--dtype", options.dtype]
    command += ["--batch-size", str(options.batch_size), "--steps", str(options.steps), "--lr", "1e-4"]
    command += ["--workers", str(options.workers), "--set", f"train.log_every={max(1, options.steps // 2)}"]
    command += ["--set", f"train.parallel={options.parallel}", "--set", "task.queue_size=1024"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    last = (out / "metrics.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=["tiny", "base", "large"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--parallel", default="ddp", choices=["ddp", "fsdp"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        data = draw_pictures(Path(folder))
        for round_number in range(options.rounds):
            for nproc, values in rates.items():
                values.append(pictures_per_second(nproc, data, Path(folder) / f"{round_number}-{nproc}", options))
                print(f"round {round_number + 1}, nproc {nproc}: {values[-1]:.1f} pictures/s", flush=True)
    one, two = (statistics.median(values) for values in rates.values())
    print(json.dumps({"one": one, "two": two, "ratio": round(two / one, 3), **vars(options)}))


if __name__ == "__main__":
    main()
