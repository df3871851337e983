"""Where the bytes of pictures lie in, shards out: the last step of `download` and all of `pack`.

plan (a row an input row: its outcome so far, or the place of its bytes) -> decode, turn, fit, hash
    -> 00000.tar, then 00000.parquet: the shard is there
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from blipcore.io.lock import lock_folder
from blipcore.io.samples import TarSample
from blipcore.io.storage import AnyPath, Remote, to_path
from blipcore.io.writing import write_json
from capfilt.engine.worker import Worker
from capfilt.ingest.picture_bytes import MissingPictureError, PictureReader
from capfilt.pictures.decode import DecodeError, difference_hash, to_jpeg
from capfilt.shards.format import CAPTIONS, IMAGES, MANIFEST, read_manifest, write_shard
from capfilt.shards.manifest import Manifest
from capfilt.shards.tables import read_table, write_table

OUTCOMES = ("ok", "not_found", "forbidden", "opted_out", "timeout", "connection", "rate_limited", "server_error")
OUTCOMES += ("too_large", "too_small", "decode_error", "bad_url", "other")
STAGING = ".staging"  # in a local folder of shards until all of them are there
ROWS_FOLDER = "rows"  # in it: the input, split into tables of a shard each
TABLES_GLOB = "[0-9][0-9][0-9][0-9][0-9]*.parquet"  # of the shards; a list of URLs may lie beside them
COUNT_FILE = "count.json"  # there once all of the input has been read
MORE_CAPTIONS = "more"  # `source` of a picture's texts after the first, which is its web text
# A row on its way: `status` "ok" is a picture whose bytes lie at `body`. With a `column` that is a table, and the bytes
# are in its row `offset`; without, a file, whole or from `offset` on. A row with a `sha256` has been fitted before.
PLAN_SCHEMA = pa.schema(
    [
        *IMAGES,
        ("more", pa.list_(pa.string())),
        ("body", pa.binary()),  # a path as the system has it, which need not be text
        ("column", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("orientation", pa.int8()),  # EXIF's, of a picture that has lost it
    ]
)

INVALID_PATH_ERRORS = frozenset({errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})  # no file can be there


@contextmanager
def open_folders(path: str) -> Iterator[tuple[AnyPath, Path]]:
    """The folder of the shards, held for this run alone, and the local one in which they are made."""
    out = to_path(path)
    with lock_folder(out):
        yield out, out / STAGING if isinstance(out, Path) else _remote_staging(out)


def _remote_staging(out: Remote) -> Path:
    """What is on its way to a remote place waits on this machine, where a later run finds it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "capfilt" / hashlib.sha256(str(out).encode()).hexdigest()[:16]


def open_manifest(
    out: AnyPath, staging: Path, stage: str, settings: dict[str, Any], packages: Iterable[str]
) -> Manifest:
    """Begin or go on with a folder of shards; ValueError when it is of others, or made with other settings."""
    if read_manifest(out) is None:
        if any(out.glob("*.tar")) or any(out.glob(TABLES_GLOB)):
            raise ValueError(f"{out} holds shards that `capfilt {stage}` has not made; choose another folder.")
        shutil.rmtree(staging, ignore_errors=True)  # of another input
    elif not (staging / ROWS_FOLDER / COUNT_FILE).exists() and not any(out.glob(TABLES_GLOB)):
        (out / MANIFEST).unlink()  # a run that ended before its input was read has settled nothing
    manifest = Manifest.begin(out, stage, settings, packages=packages)
    rows = manifest.content.get("counts", {}).get("rows", 0)
    if sum(1 for _ in out.glob(TABLES_GLOB)) < -(-rows // settings["shard_size"]):  # somebody has taken a table away
        manifest.reopen()
    return manifest


def split_rows(staging: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema, shard_size: int) -> tuple[int, int]:
    """Write the rows of the input as tables, one a shard, once; returns their number and that of texts in `more`."""
    folder = staging / ROWS_FOLDER
    if not (folder / COUNT_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        number, total, more, rows = 0, 0, 0, iter(rows)
        while part := list(islice(rows, shard_size)):
            write_table(folder / f"{number:05d}.parquet", pa.Table.from_pylist(part, schema=schema))
            number, total = number + 1, total + len(part)
            more += sum(len(row.get("more") or ()) for row in part)
        write_json(folder / COUNT_FILE, {"rows": total, "more": more})
    counts = json.loads((folder / COUNT_FILE).read_text())
    return counts["rows"], counts["more"]


def sample_key(row: int, shard_size: int) -> str:
    """img2dataset's key of a row of the input: the shard's number, then the place in it."""
    digits = len(str(shard_size - 1)) if shard_size > 1 else 0
    shard, place = divmod(row, shard_size)
    return f"{shard * 10**digits + place:0{digits + 5}d}"


@dataclass
class ShardWriter:
    """Engine stage: the plan of a shard -> fitted pictures in a tar, and its table."""

    plans: str  # folder of the plans, a table a shard
    out: str
    image_size: int = 512  # longer side at most; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 50_000_000
    quality: int = 95
    captions: str | None = None  # folder for a picture's texts after the first
    name: str = "publish"

    def output(self, shard: str) -> AnyPath:
        return to_path(self.out) / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        self.bodies = PictureReader(self.max_bytes)

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        rows = read_table(Path(self.plans) / f"{shard}.parquet").to_pylist()
        write_shard(to_path(self.out) / f"{shard}.tar", self._pictures(rows, worker.advance), make_folder=False)
        if self.captions is not None:
            write_table(to_path(self.captions) / f"{shard}.parquet", _further_captions(rows), make_folder=False)
        counts = Counter(row["status"] for row in rows) | Counter(rows=len(rows))
        # the table last: with it the shard is there
        table = pa.Table.from_pylist(rows, schema=IMAGES)
        write_table(self.output(shard), table, dict(counts), make_folder=False)
        return {**counts, "pictures": counts["ok"]}

    def _pictures(self, rows: list[dict[str, Any]], advance: Callable[[int], None]) -> Iterator[TarSample]:
        """The rows that are pictures; `rows` are completed in passing."""
        try:
            for row in rows:
                if row["status"] != "ok":
                    continue
                data = self._body(row)
                if data is not None and (row["sha256"] is not None or (data := self._fitted(row, data))):
                    advance(1)
                    about = {name: row[name] for name in IMAGES.names if row[name] is not None}
                    yield TarSample(row["key"], data, row["caption"], about)
        except BaseException:
            self.bodies.close()
            raise
        self.bodies.close(but_tables=True)

    def _body(self, row: dict[str, Any]) -> bytes | None:
        try:
            return self.bodies.read(os.fsdecode(row["body"]), row["column"], row["offset"], row["size"])
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

    def _fitted(self, row: dict[str, Any], data: bytes) -> bytes | None:
        try:
            fitted = to_jpeg(data, self.image_size, self.quality, row.get("orientation") or 1)
        except DecodeError as error:
            row["status"] = "too_large" if error.reason == "too_many_pixels" else "decode_error"
            row["error"] = str(error)
            return None
        row["original_width"], row["original_height"] = fitted.original_width, fitted.original_height
        if min(fitted.original_width, fitted.original_height) < self.min_size:
            row["status"] = "too_small"
            row["error"] = f"{fitted.original_width} x {fitted.original_height}"
            return None
        row["width"], row["height"], row["bytes"] = fitted.width, fitted.height, len(fitted.data)
        row["sha256"] = hashlib.sha256(fitted.data).hexdigest()
        row["dhash"] = difference_hash(fitted.data)
        return fitted.data


def _further_captions(rows: list[dict[str, Any]]) -> pa.Table:
    """The texts after the first of the rows that are pictures, as a table of captions."""
    texts = [
        {"key": row["key"], "index": index, "text": text}
        for row in rows
        if row["status"] == "ok"
        for index, text in enumerate(row["more"] or ())
    ]
    return pa.Table.from_pylist(texts, schema=CAPTIONS)


# ---------------------------------------------------------------------------------------------------- bodies
