"""The on-disk format of a shard set: schemas of its tables, and a writer of its tars.

A shard set is img2dataset's webdataset layout: `00000.tar` with `key.jpg key.txt key.json`, and `00000.parquet` with
one row per input row. Stages add tables in folders next to them and never change a tar. Every file has one writer and
appears only when complete.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable

import pyarrow as pa

from blipcore.io.samples import TarSample
from blipcore.io.storage import AnyPath
from blipcore.io.writing import atomic_write

# Columns of the tables. A score table has SCORES and one float32 column per score; a filtered table also has VERDICT.
IMAGES = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),  # the web text of the input, null if none
        ("status", pa.string()),  # "ok", or the reason why the picture is not in the tar
        ("error", pa.string()),  # the original error message
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),  # of the stored bytes
        ("dhash", pa.string()),  # difference hash, 16 hex digits, see pictures/decode.py
        ("bytes", pa.int64()),
    ]
)
CAPTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int32()),
        ("text", pa.string()),  # null if there is an `error`
        ("logprob", pa.float32()),  # null if the captioner does not return it
        ("error", pa.string()),
    ]
)
SCORES = pa.schema([("key", pa.string()), ("source", pa.string()), ("index", pa.int32()), ("text", pa.string())])
VERDICT = pa.schema([("keep", pa.bool_()), ("reason", pa.string()), ("url", pa.string()), ("sha256", pa.string())])

WEB = "web"  # the source of web texts; any other source is a captioner's name


def scores_schema(columns: Iterable[str]) -> pa.Schema:
    """Return the schema of a `scores/<name>` table with these score columns (float32)."""
    return pa.schema([*SCORES, *((name, pa.float32()) for name in columns)])


def filtered_schema(columns: Iterable[str]) -> pa.Schema:
    """Return the schema of a `filtered/<name>` table with these score columns (float32)."""
    return pa.schema([*scores_schema(columns), *VERDICT])


def picture_suffix(data: bytes) -> str:
    """Return the file suffix for the bytes of a picture: jpg, png, webp, gif, tif or bmp; jpg if unknown."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return {b"GIF8": "gif", b"II*\0": "tif", b"MM\0*": "tif"}.get(data[:4], "bmp" if data[:2] == b"BM" else "jpg")


def write_shard(path: AnyPath, samples: Iterable[TarSample], *, make_folder: bool = True) -> None:
    """Write each sample as `key.jpg` (or the suffix of its format), with `key.txt` and `key.json` if it has them.

    Equal samples give equal bytes.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Streamed, in the pax format and with the attributes of webdataset's TarWriter, whose import takes two seconds.
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w|") as tar:
        for sample in samples:
            members = {picture_suffix(sample.image): sample.image}
            if sample.text is not None:
                members["txt"] = sample.text.encode("utf-8", errors="replace")
            if sample.metadata:
                members["json"] = json.dumps(sample.metadata, ensure_ascii=False).encode("utf-8", errors="replace")
            for suffix in sorted(members):
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size, member.mode = len(members[suffix]), 0o444
                member.uname = member.gname = "bigdata"
                tar.addfile(member, io.BytesIO(members[suffix]))
