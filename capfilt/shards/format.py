"""The on-disk format, all of it: tars of pictures in, tables beside them out, present means complete.

A shard set is img2dataset's webdataset layout: `00000.tar` with `key.jpg key.txt key.json`, and `00000.parquet` with
one row an input row. Stages add tables next to it and never touch the tars. Every file has one writer and appears
under its name only when it is whole. Bad data is named, never an exception; a bad path is one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa

from blipcore.io.samples import TarSample
from blipcore.io.storage import AnyPath, resolve_reference
from blipcore.io.writing import atomic_write

# Columns of the four kinds of tables. SCORES are followed by one float32 column a score; a filtered table is a table of
# scores followed by VERDICT.
IMAGES = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),  # the web text as it came; null where the input had none
        ("status", pa.string()),  # "ok" or the outcome that kept the picture away
        ("error", pa.string()),  # the raw message behind the outcome
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),  # of the stored bytes
        ("dhash", pa.string()),  # difference hash, 16 hex digits: pictures that look alike differ in few bits
        ("bytes", pa.int64()),
    ]
)
CAPTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int32()),
        ("text", pa.string()),  # null exactly where `error` says why there is none
        ("logprob", pa.float32()),  # null where the captioner does not tell
        ("error", pa.string()),
    ]
)
SCORES = pa.schema([("key", pa.string()), ("source", pa.string()), ("index", pa.int32()), ("text", pa.string())])
VERDICT = pa.schema([("keep", pa.bool_()), ("reason", pa.string()), ("url", pa.string()), ("sha256", pa.string())])

WEB = "web"  # the `source` of a text that came with the picture; any other source is a captioner's name


def scores_schema(columns: Iterable[str]) -> pa.Schema:
    """Schema of a `scores/<name>` table with these score columns (float32)."""
    return pa.schema([*SCORES, *((name, pa.float32()) for name in columns)])


def filtered_schema(columns: Iterable[str]) -> pa.Schema:
    """Schema of a `filtered/<name>` table with these score columns (float32)."""
    return pa.schema([*scores_schema(columns), *VERDICT])


# ---------------------------------------------------------------------------------------------------- shard sets


# ---------------------------------------------------------------------------------------------------- reading tars


# ---------------------------------------------------------------------------------------------------- writing


def suffix_of(data: bytes) -> str:
    """File suffix that belongs to the bytes: jpg, png, webp, gif, ...; jpg where it is unknown."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return {b"GIF8": "gif", b"II*\0": "tif", b"MM\0*": "tif"}.get(data[:4], "bmp" if data[:2] == b"BM" else "jpg")


def write_shard(path: AnyPath, pictures: Iterable[TarSample], *, make_folder: bool = True) -> None:
    """Write a tar of `key.jpg`, `key.txt` (where there is a text) and `key.json`: same pictures, same bytes."""
    from webdataset import TarWriter  # imports torch, so only where it is used

    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as tar:
        for picture in pictures:
            sample = {"__key__": picture.key, suffix_of(picture.image): picture.image}
            if picture.text is not None:
                sample["txt"] = picture.text.encode("utf-8", errors="replace")
            if picture.metadata:
                sample["json"] = json.dumps(picture.metadata, ensure_ascii=False).encode("utf-8", errors="replace")
            tar.write(sample)


# ---------------------------------------------------------------------------------------------------- manifests

MANIFEST = "manifest.json"


def read_manifest(folder: AnyPath) -> dict | None:
    """The manifest of an output folder of ours, None where there is none (an img2dataset folder, say)."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise ValueError(f"{folder / MANIFEST} is not valid JSON; delete the folder and run again.") from None
    return content if isinstance(content, dict) and "stage" in content else None


def images_of(folder: AnyPath) -> AnyPath:
    """The shard set that a table folder of ours was made from."""
    manifest = read_manifest(folder)
    if manifest is None or "images" not in manifest:
        raise ValueError(f"{folder} has no manifest.json that says where its pictures are.")
    return resolve_reference(folder, manifest["images"])
