"""Speed of `capfilt download` against plain img2dataset, and of `capfilt pack` against webdataset's TarWriter.

Both downloaders fetch the same list of distinct JPEGs from a server on loopback, which has a process of its own, with
the same threads, processes and shard size, and without retries. Every run is a whole command, from the start of Python
to its end. The commands take turns in every round. Wall time and CPU time (user and system, of all processes of the
command) are medians over rounds, memory is the largest sum of the resident sets of these processes.

    python tests/benchmarks/download.py [--pictures 3000 --processes 1 2 --rounds 3 --side 640]

Pictures of `--side` 640 are shrunk to 512 pixels by both downloaders. With `--side 512`, img2dataset encodes them anew
by default, and `capfilt` keeps their bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE_SIZE = 512  # longer side of a stored picture, in pixels
SCRIPT = Path(__file__).resolve()


def draw_picture(number: int, side: int) -> bytes:
    """Return a JPEG of `side` x 3/4 `side` pixels, soft noise, about 64 kB at 640 pixels; each `number` is distinct."""
    rng = np.random.default_rng(number)
    noise = rng.integers(0, 256, (side * 3 // 40, side // 10, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- server


def serve(pipe: Connection, folder: Path, count: int) -> None:
    """Serve the pictures `/0.jpg`, `/1.jpg`, ... from memory until the parent closes the pipe; send the port first."""
    bodies = [(folder / f"{number}.jpg").read_bytes() for number in range(count)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        body = bodies[int(request.split(b" ", 2)[1][1:].partition(b".")[0])]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(wait_until_closed, pipe)
        os._exit(0)

    asyncio.run(main())


def wait_until_closed(pipe: Connection) -> None:
    try:
        pipe.recv()
    except EOFError:
        return


# --- contenders


def write_bare_tars(folder: Path, out: Path, image_size: int) -> None:
    """Write the pictures of `folder` with webdataset's ShardWriter, as they are or shrunk as by `pack`."""
    from webdataset import ShardWriter

    out.mkdir()
    with ShardWriter(str(out / "%05d.tar"), maxcount=1000, verbose=0) as writer:
        for path in sorted(folder.glob("*.jpg")):
            data = path.read_bytes()
            if image_size:
                image = Image.open(io.BytesIO(data)).convert("RGB")
                image.thumbnail((image_size, image_size), Image.Resampling.HAMMING)
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=95)
                data = buffer.getvalue()
            writer.write({"__key__": path.stem, "jpg": data})


@dataclass(frozen=True)
class Contender:
    """A command to time; `{out}` in it is replaced by a new folder. Ratios are to the contender named `peer`."""

    name: str
    command: tuple[str, ...]
    peer: str = ""


def downloaders(urls: Path, processes: int) -> list[Contender]:
    img2dataset = (
        f"--url_list={urls}", "--input_format=txt", "--output_format=webdataset", "--output_folder={out}",
        f"--image_size={IMAGE_SIZE}", "--resize_mode=keep_ratio_largest", "--resize_only_if_bigger=True",
        f"--processes_count={processes}", "--thread_count=64", "--number_sample_per_shard=1000", "--retries=0",
    )  # fmt: skip
    capfilt = (
        "download", str(urls), "{out}", "--allow-private", "--retries", "0", "--workers", str(processes),
        "--threads", "64", "--shard-size", "1000", "--image-size", str(IMAGE_SIZE),
    )  # fmt: skip
    peer = f"img2dataset, {processes} processes"
    return [
        Contender(peer, (str(Path(sys.executable).with_name("img2dataset")), *img2dataset)),
        Contender(f"capfilt download, {processes} processes", (sys.executable, "-m", "capfilt", *capfilt), peer),
    ]


def packers(pictures: Path, processes: int) -> list[Contender]:
    capfilt = (sys.executable, "-m", "capfilt", "pack", str(pictures), "{out}", "--shard-size", "1000")
    bare = (sys.executable, str(SCRIPT), "--bare", str(pictures), "{out}")
    contenders = []
    for work, size in (("bytes", 0), ("shrunk", IMAGE_SIZE)):
        peer = f"webdataset, {work}"
        contenders.append(Contender(peer, (*bare, "--size", str(size))))
        command = (*capfilt, "--workers", str(processes), "--image-size", str(size))
        contenders.append(Contender(f"capfilt pack, {work}, {processes} processes", command, peer))
    return contenders


# --- measurement


@dataclass(frozen=True)
class Measurement:
    """Seconds of wall and CPU time, bytes of peak memory, bytes of tars, and pictures in them."""

    wall: float
    cpu: float
    memory: int
    tars: int


def measure(contender: Contender, folder: Path) -> Measurement:
    """Run a command once into a new folder, which is removed afterwards."""
    out = folder / "out"
    command = [part.replace("{out}", str(out)) for part in contender.command]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    memory = MemorySampler(process.pid)
    assert process.stderr is not None
    messages = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    peak = memory.stop()
    if process.returncode:
        raise RuntimeError(f"{contender.name} failed: {messages.decode(errors='replace')[-2000:]}")
    tars = sum(path.stat().st_size for path in out.glob("*.tar"))
    shutil.rmtree(out)
    return Measurement(wall, usage.ru_utime + usage.ru_stime, peak, tars)


class MemorySampler:
    """Samples the resident memory of a process and its descendants five times a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.2):
            self.peak = max(self.peak, resident_bytes(self.pid))

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.peak


def resident_bytes(root: int) -> int:
    """Return the sum of the resident sets of a process and its descendants; pages that they share count repeatedly."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
    total = 0
    for pid in parents:
        ancestor = pid
        while ancestor not in (root, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor == root:
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:
                continue
    return total


def compete(contenders: list[Contender], rounds: int, folder: Path) -> dict[str, list[Measurement]]:
    results: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        # in alternating order, so that a drift of the machine's speed favours none
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            results[contender.name].append(measure(contender, folder))
    return results


def show(contenders: list[Contender], results: dict[str, list[Measurement]], pictures: int) -> None:
    print("| command | pictures/s | spread | x peer | CPU ms/picture | x peer's CPU | peak MiB | tars MB |")
    print("|---|---|---|---|---|---|---|---|")
    for contender in contenders:
        runs = results[contender.name]
        walls = [run.wall for run in runs]
        wall, cpu = statistics.median(walls), statistics.median(run.cpu for run in runs)
        ratio = cpu_ratio = ""
        if contender.peer:
            peers = results[contender.peer]
            ratio = f"{statistics.median(run.wall for run in peers) / wall:.2f}"
            cpu_ratio = f"{statistics.median(run.cpu for run in peers) / cpu:.2f}"
        print(
            f"| {contender.name} | {pictures / wall:.0f} | {(max(walls) - min(walls)) / wall:.0%} | {ratio} | "
            f"{1000 * cpu / pictures:.2f} | {cpu_ratio} | {max(run.memory for run in runs) / 2**20:.0f} | "
            f"{runs[-1].tars / 1e6:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=640, help="longer side of the pictures in pixels")
    parser.add_argument("--only", choices=["download", "pack"], help="default: both")
    parser.add_argument("--bare", type=Path, nargs=2, help=argparse.SUPPRESS)  # runs webdataset's writer
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        source, out = args.bare
        write_bare_tars(source, out, args.size)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = folder / "pictures"
        pictures.mkdir()
        sizes = []
        for number in range(args.pictures):
            data = draw_picture(number, args.side)
            sizes.append(len(data))
            (pictures / f"{number}.jpg").write_bytes(data)
        print(f"{args.pictures} JPEGs of {statistics.mean(sizes) / 1000:.0f} kB, {args.side} pixels wide\n", flush=True)
        for processes in args.processes:
            if args.only != "pack":
                pipe, child_pipe = multiprocessing.get_context("spawn").Pipe()
                server = multiprocessing.get_context("spawn").Process(
                    target=serve, args=(child_pipe, pictures, args.pictures), daemon=True
                )
                server.start()
                child_pipe.close()
                urls = folder / "urls.txt"
                port = pipe.recv()
                urls.write_text("".join(f"http://127.0.0.1:{port}/{n}.jpg\n" for n in range(args.pictures)))
                contenders = downloaders(urls, processes)
                show(contenders, compete(contenders, args.rounds, folder), args.pictures)
                pipe.close()
                server.join(10)
            if args.only != "download":
                contenders = packers(pictures, processes)
                show(contenders, compete(contenders, args.rounds, folder), args.pictures)


if __name__ == "__main__":
    main()
