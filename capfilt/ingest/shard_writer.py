"""Writes shards from plans, for `download` and `pack`.

A plan is a table with the place of each picture's bytes. Each picture is read, decoded, rotated upright, shrunk and
hashed. `00000.tar` is written first, `00000.parquet` last: its presence means that the shard is complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from blipcore.io.lock import lock_folder
from blipcore.io.samples import TarSample
from blipcore.io.storage import AnyPath, Remote, to_path
from capfilt.engine.worker import Worker
from capfilt.ingest.picture_bytes import MissingPictureError, PictureBytesReader, check_digest
from capfilt.ingest.plans import COUNT_FILE, NO_COLUMNS, ROWS_FOLDER, read_part
from capfilt.pictures.decode import MAX_PIXELS, DecodeError, to_jpeg
from capfilt.shards.format import CAPTIONS, IMAGES, write_shard
from capfilt.shards.further_columns import json_value
from capfilt.shards.manifest import MANIFEST, Manifest, count_shards, read_manifest
from capfilt.shards.tables import write_table

T = TypeVar("T")

OUTCOMES = (
    "ok",
    "not_found",
    "forbidden",
    "opted_out",
    "timeout",
    "connection",
    "rate_limited",
    "server_error",
    "too_large",
    "too_small",
    "decode_error",
    "wrong_checksum",
    "bad_url",
    "bad_row",
    "other",
)
# Of manifests. Sets without it have a row per row of a list, even for equal URLs, and no further columns.
LAYOUT = 2
STAGING = ".staging"  # subfolder of a local shard set until it is complete
TABLES_GLOB = "[0-9][0-9][0-9][0-9][0-9]*.parquet"  # tables of shards; a list of URLs may be in the same folder
MORE_CAPTIONS = "more"  # source of the texts after the first; the first is the web text
MAX_THREADS = 8  # that convert pictures in a worker
INVALID_PATH_ERRORS = frozenset({errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


@contextmanager
def open_folders(path: str) -> Iterator[tuple[AnyPath, Path]]:
    """Lock the folder of a shard set; yield it and the local staging folder."""
    out = to_path(path)
    with lock_folder(out):
        yield out, out / STAGING if isinstance(out, Path) else _remote_staging(out)


def _remote_staging(out: Remote) -> Path:
    """Return the local staging folder of a remote shard set, the same in every run."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "capfilt" / hashlib.sha256(str(out).encode()).hexdigest()[:16]


def open_manifest(
    out: AnyPath, staging: Path, stage: str, settings: dict[str, Any], packages: Iterable[str]
) -> Manifest:
    """Start or resume a shard set; ValueError if it was made by another program or with other settings."""
    if read_manifest(out) is None:
        if any(out.glob("*.tar")) or any(out.glob(TABLES_GLOB)):
            raise ValueError(f"{out} holds shards that `capfilt {stage}` has not made; choose another folder.")
        shutil.rmtree(staging, ignore_errors=True)  # of another input
    elif not (staging / ROWS_FOLDER / COUNT_FILE).exists() and not any(out.glob(TABLES_GLOB)):
        # The earlier run ended before it had read its input, so it wrote no shard.
        (out / MANIFEST).unlink()
    manifest = Manifest.begin(out, stage, settings, packages=packages, unchecked={"layout": LAYOUT})
    tables = sum(1 for _ in out.glob(TABLES_GLOB))
    if "counts" in manifest.content and tables < count_shards(manifest.content):  # a table was deleted
        manifest.drop_counts()
    return manifest


def open_more_captions(out: AnyPath, input_fingerprint: str) -> Manifest:
    """Begin the captions of the source `more`, in the shard set `out`, or continue those of an extended set."""
    folder = out / "captions" / MORE_CAPTIONS
    recorded = read_manifest(folder)
    settings = {"input_sha256": input_fingerprint} if recorded is None else recorded["config"]
    return Manifest.begin(folder, "caption", settings, images=out)


@dataclass
class ShardWriter:
    """Stage that writes the tar and the table of a shard from its plan."""

    plans: str  # folder with a plan per shard
    out: str
    image_size: int = 512  # longer side at most; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 50_000_000
    quality: int = 95
    max_pixels: int = MAX_PIXELS
    captions: str | None = None  # folder for a picture's texts after the first
    further: pa.Schema = NO_COLUMNS  # further columns of the plans, in their final types
    name: str = "write"

    def output(self, shard: str) -> AnyPath:
        return to_path(self.out) / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        self.reader = PictureBytesReader(self.max_bytes)

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        rows = read_part(Path(self.plans) / f"{shard}.parquet", self.further).to_pylist()
        write_shard(to_path(self.out) / f"{shard}.tar", self._samples(rows, worker), make_folder=False)
        if self.captions is not None:
            write_table(to_path(self.captions) / f"{shard}.parquet", _more_captions_table(rows), make_folder=False)
        counts = Counter(row["status"] for row in rows)
        counts["rows"] = len(rows)
        # Last: the table marks the shard as complete.
        table = pa.Table.from_pylist(rows, schema=pa.schema([*IMAGES, *self.further]))
        write_table(self.output(shard), table, dict(counts), make_folder=False)
        return {**counts, "pictures": counts["ok"]}

    def _samples(self, rows: list[dict[str, Any]], worker: Worker) -> Iterator[TarSample]:
        """Yield the samples of the tar; fill in the outcome and the picture columns of `rows`."""
        threads = min(worker.cores, MAX_THREADS)
        try:
            with ThreadPoolExecutor(threads) as pool:
                reads = (self._read_image(row, pool) for row in rows)
                for row, image in zip(rows, finish_in_order(reads, 2 * threads), strict=True):
                    if image is not None:
                        worker.advance(1)
                        yield TarSample(row["key"], image, row["caption"], self._metadata(row))
        except BaseException:
            self.reader.close()
            raise
        self.reader.close(keep_tables=True)

    def _metadata(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON of a sample: what the table has in its row."""
        metadata = {name: row[name] for name in IMAGES.names if row[name] is not None}
        further = {name: json_value(row[name]) for name in self.further.names if row[name] is not None}
        # A "caption" that is null tells readers that no other field is the text.
        return metadata | ({"caption": row["caption"]} if further else {}) | further

    def _read_image(self, row: dict[str, Any], pool: Executor) -> Future[bytes | None]:
        """Return the future bytes to store; they are None, with the reason in `row`, if there are none."""
        data = self._read_bytes(row) if row["status"] == "ok" else None
        if data is not None and row["sha256"] is None:
            return pool.submit(self._convert, row, data)
        finished: Future[bytes | None] = Future()
        finished.set_result(data)
        return finished

    def _read_bytes(self, row: dict[str, Any]) -> bytes | None:
        try:
            data = self.reader.read(os.fsdecode(row["body"]), row["column"], row["offset"], row["size"])
            if row.get("checksum") is not None and row["sha256"] is None:  # a stored picture was checked
                check_digest(data, row["checksum"])
            return data
        except MissingPictureError as error:
            row["status"], row["error"] = error.outcome, str(error)
        except FileNotFoundError:
            row["status"], row["error"] = "not_found", "no such file"
        except PermissionError as error:
            row["status"], row["error"] = "forbidden", error.strerror
        except OSError as error:
            if error.errno not in INVALID_PATH_ERRORS:
                raise
            row["status"], row["error"] = "not_found", error.strerror
        return None

    def _convert(self, row: dict[str, Any], data: bytes) -> bytes | None:
        try:
            image = to_jpeg(data, self.image_size, self.quality, row.get("orientation") or 1, self.max_pixels)
        except DecodeError as error:
            row["status"] = "too_large" if error.reason == "too_many_pixels" else "decode_error"
            row["error"] = str(error)
            return None
        row["original_width"], row["original_height"] = image.original_width, image.original_height
        if min(image.original_width, image.original_height) < self.min_size:
            row["status"] = "too_small"
            row["error"] = f"{image.original_width} x {image.original_height}"
            return None
        row["width"], row["height"], row["bytes"] = image.width, image.height, len(image.data)
        row["sha256"] = hashlib.sha256(image.data).hexdigest()
        row["dhash"] = image.dhash
        return image.data


def finish_in_order(futures: Iterable[Future[T]], ahead: int) -> Iterator[T]:
    """Yield the results of futures in their order; at most `ahead` of them are unfinished or waiting."""
    waiting: deque[Future[T]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


def _more_captions_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the texts after the first of each stored picture as a caption table.

    Its column `columns`, if any text has some, holds the further columns of the text's own row, as JSON.
    """
    captions = [
        {"key": row["key"], "index": index, "text": text, "columns": columns}
        for row in rows
        if row["status"] == "ok" and row["more"]
        for index, (text, columns) in enumerate(zip_longest(row["more"], row.get("more_columns") or ()))
    ]
    has_columns = any(caption["columns"] for caption in captions)
    schema = CAPTIONS.append(pa.field("columns", pa.string())) if has_columns else CAPTIONS
    return pa.Table.from_pylist(captions, schema=schema)
