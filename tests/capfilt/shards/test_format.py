"""Written shards can be read by capfilt and by webdataset, and have the same bytes every time."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from blipcore.io.samples import TarSample, read_samples
from blipcore.io.tars import TarProblem
from blipcore.io.writing import remove_temporary_files
from capfilt.shards.format import filtered_schema, picture_suffix, write_shard


def encode(seed: int = 0, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_samples_are_read_as_written_and_have_the_same_bytes_twice(tmp_path: Path) -> None:
    samples = [
        TarSample("000000000", encode(1), "a café in 北京", {"url": "http://x/1", "width": 16}),
        TarSample("000000001", encode(2, "PNG"), "", {"sha256": "ab"}),
        TarSample("000000002", encode(3)),
    ]
    write_shard(tmp_path / "a.tar", samples)
    write_shard(tmp_path / "b.tar", iter(samples))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    problems: list[TarProblem] = []
    assert list(read_samples(tmp_path / "a.tar", problems)) == samples
    assert problems == []
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames()[:4] == ["000000000.jpg", "000000000.json", "000000000.txt", "000000001.json"]
        assert {member.mtime for member in tar} == {0}


def test_tars_have_the_bytes_of_webdatasets_own_writer(tmp_path: Path) -> None:
    samples = [TarSample(f"{number:09d}", encode(number), "π" * number, {"n": "é" * 100}) for number in range(3)]
    samples.append(TarSample("long/" + 120 * "k", encode(3), "text"))
    write_shard(tmp_path / "a.tar", samples)
    with webdataset.TarWriter(str(tmp_path / "b.tar"), encoder=False, mtime=0, format="PAX_FORMAT") as writer:
        for sample in samples:
            text = {} if sample.text is None else {"txt": sample.text.encode()}
            metadata = {"json": json.dumps(sample.metadata, ensure_ascii=False).encode()} if sample.metadata else {}
            writer.write({"__key__": sample.key, "jpg": sample.image, **text, **metadata})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    samples = [TarSample(f"{number:09d}", encode(number), f"text {number}", {"n": number}) for number in range(3)]
    write_shard(tmp_path / "a.tar", samples)
    read = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert [(sample["__key__"], sample["jpg"], sample["txt"].decode()) for sample in read] == [
        (sample.key, sample.image, sample.text) for sample in samples
    ]


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    def fail() -> Iterator[TarSample]:
        yield TarSample("0", encode())
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "0.tar", fail())
    assert os.listdir(tmp_path) == []
    (tmp_path / "0.tar").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "0.tar", fail())
    assert os.listdir(tmp_path) == ["0.tar"]
    assert (tmp_path / "0.tar").read_bytes() == b"old"
    (tmp_path / ".0.tar.deadbeef.tmp").write_bytes(b"of a killed run")
    remove_temporary_files(tmp_path)
    assert os.listdir(tmp_path) == ["0.tar"]


def test_schemas_and_suffixes() -> None:
    names = ["key", "source", "index", "text", "itm", "keep", "reason", "url", "sha256"]
    assert filtered_schema(["itm"]).names == names
    suffixes = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}
    assert {kind: picture_suffix(encode(0, kind)) for kind in suffixes} == suffixes
    assert picture_suffix(b"??") == "jpg"
