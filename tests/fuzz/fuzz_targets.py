"""What is fuzzed: each target has a strategy of inputs, and a check that accepts results and documented errors."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from safetensors.numpy import save as save_safetensors

from blipcore.checkpoints.files import read_tensors
from blipcore.io.json_rows import read_json_rows
from blipcore.io.samples import read_samples
from blipcore.io.tars import TarProblem, walk_tar
from capfilt.caption.stage import CaptionConfig
from capfilt.config import resolve
from capfilt.ingest.lists.url_list import UrlList
from capfilt.ingest.lists.urls import check_url
from capfilt.pictures.decode import DecodeError, decode_picture
from capfilt.shards.manifest import read_manifest
from capfilt.shards.tables import read_table


class Target(NamedTuple):
    inputs: SearchStrategy
    check: Callable[..., None]


# ---------------------------------------------------------------------------------------------------- inputs


def damaged(*originals: bytes) -> SearchStrategy[bytes]:
    """Return a strategy of valid files with some bytes replaced, inserted or cut, and of arbitrary bytes."""

    def apply(original: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
        data = bytearray(original)
        for kind, place, content in edits:
            at = int(place * len(data))
            if kind == "replace":
                data[at : at + len(content)] = content
            elif kind == "insert":
                data[at:at] = content
            elif kind == "cut":
                del data[at : at + 64 * len(content)]
            else:
                del data[at:]
        return bytes(data)

    kinds = st.sampled_from(["replace"] * 5 + ["insert", "cut", "end"])
    edit = st.tuples(kinds, st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=12))
    return st.builds(apply, st.sampled_from(originals), st.lists(edit, max_size=6)) | st.binary(max_size=2000)


def small_tar(kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in (("0.jpg", b"x" * 700), ("0.txt", "é".encode()), ("deep/" * 30 + "1.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def small_table() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg", None], "caption": ["a", "b"], "n": [[1], [2]]}), buffer)
    return buffer.getvalue()


def small_checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": {"a.weight": torch.zeros(3), "n": 1}}, buffer)
    return buffer.getvalue()


def small_picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), "red").save(buffer, kind)
    return buffer.getvalue()


TAR_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LISTS = {
    "csv": b'url,caption\nhttp://a.example/1.jpg,"a ""red"" dog"\nhttp://a.example/2.jpg,two\n',
    "tsv": b"a red dog\thttp://a.example/1.jpg\ntwo\thttp://a.example/2.jpg\n",
    "txt": b"http://a.example/1.jpg\nhttp://a.example/2.jpg\n",
    "jsonl": b'{"url": "http://a.example/1.jpg", "caption": "\\ud83d\\ude00"}\n{"url": null}\n',
    "json": b'[{"url": "http://a.example/1.jpg", "caption": ["a", "b"]}, {"url": "x"}]',
    "parquet": small_table(),
}
WEIGHTS = save_safetensors({"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float16)})
YAML = b"model: blip\ngenerate:\n  mode: beam\n  num_captions: 2\nchat: {prompt: null}\nbatch_size: 8\n"


# ---------------------------------------------------------------------------------------------------- checks


def with_file(check: Callable[[Path], None], name: str) -> Callable[[bytes], None]:
    """Return a check of bytes that calls `check` with a file that holds them."""

    def check_bytes(data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            check(path)

    return check_bytes


def check_tar(path: Path) -> None:
    data = path.read_bytes()
    problems: list[TarProblem] = []
    position = 0
    for member in walk_tar(io.BytesIO(data), problems):
        assert position <= member.offset <= len(data) + 512 and member.size >= 0
        assert not member.complete or member.offset + member.size <= len(data)
        member.name.encode("utf-8")
        position = member.offset + member.size
    for sample in read_samples(path):
        assert not sample.key.startswith("/") and ".." not in sample.key.split("/")
        (sample.text or "").encode("utf-8")


def check_list(path: Path) -> None:
    with suppress(ValueError):
        rows = list(UrlList(str(path)))
        pa.Table.from_pylist([{"url": row.get("url"), "caption": row.get("caption")} for row in rows])


def check_annotations(path: Path) -> None:
    with suppress(ValueError):
        json.dumps([row for _, row in read_json_rows(path)])


def check_weights(path: Path) -> None:
    with suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())


def check_yaml(path: Path) -> None:
    with suppress(ValueError):
        resolve(CaptionConfig, path, (), {"data": "data"})


def check_set(setting: str) -> None:
    with suppress(ValueError):
        resolve(CaptionConfig, None, (setting,), {"data": "data", "model": "blip"})


def check_table(path: Path) -> None:
    with suppress(ValueError):
        read_table(path)


def check_manifest(path: Path) -> None:
    with suppress(ValueError):
        read_manifest(path.parent)


def check_picture(data: bytes) -> None:
    with suppress(DecodeError):
        assert decode_picture(data).mode == "RGB"


def check_address(url: str) -> None:
    with suppress(ValueError):
        encoded = check_url(url, allow_private=False)
        assert encoded.isascii() and encoded.startswith(("http://", "https://"))
        assert check_url(encoded, allow_private=False) == encoded


HOSTS = ["127.0.0.1", "[::1]", "a.example", "0x7f.1", "2130706433", "[::ffff:10.0.0.1]", "localhost.", "①②⑦.0.0.1"]
URL_PARTS = st.sampled_from(
    ["http://", "https:", "//", "@", ":", "80", "/", "%", "%00", "#", "?", "[", "]", " ", *HOSTS]
)

TARGETS = {
    "tar": Target(damaged(*map(small_tar, TAR_FORMATS)), with_file(check_tar, "00000.tar")),
    **{
        f"list.{kind}": Target(damaged(content), with_file(check_list, f"list.{kind}"))
        for kind, content in LISTS.items()
    },
    "annotations": Target(damaged(LISTS["json"]), with_file(check_annotations, "rows.json")),
    "safetensors": Target(damaged(WEIGHTS), with_file(check_weights, "model.safetensors")),
    "pickle": Target(damaged(small_checkpoint()), with_file(check_weights, "model.pth")),
    "yaml": Target(damaged(YAML), with_file(check_yaml, "config.yaml")),
    "set": Target(st.text(max_size=40) | st.from_regex(r"(generate|chat)\.\w+=[\w\[{: }\],.-]+"), check_set),
    "table": Target(damaged(small_table()), with_file(check_table, "00000.parquet")),
    "manifest": Target(
        damaged(b'{"stage": "pack", "counts": {"rows": 1}}'), with_file(check_manifest, "manifest.json")
    ),
    "picture": Target(damaged(*map(small_picture, ("JPEG", "PNG", "WEBP", "GIF", "TIFF"))), check_picture),
    "url": Target(st.lists(URL_PARTS | st.text(max_size=3), max_size=8).map("".join), check_address),
}
