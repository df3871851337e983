"""Reading the bytes of pictures from files, parts of files and tables."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blipcore.io.storage import to_path
from capfilt.ingest.picture_bytes import MissingPictureError, PictureBytesReader, check_digest


def test_a_file_is_read_whole_or_in_part(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    reader = PictureBytesReader(max_bytes=10)
    assert reader.read(str(tmp_path / "a.bin"), None, None, None) == b"0123456789"
    assert reader.read(str(tmp_path / "a.bin"), None, 3, 4) == b"3456"
    assert reader.read(str(tmp_path / "a.bin"), None, 0, 2) == b"01"
    to_path("memory://picture_bytes/a.bin").write_bytes(b"abc")
    assert reader.read("memory://picture_bytes/a.bin", None, None, None) == b"abc"
    assert reader.read("memory://picture_bytes/a.bin", None, 1, 1) == b"b"
    reader.close()
    reader.close()


def test_a_cell_is_bytes_or_a_struct(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    structs = [{"bytes": b"c", "path": None}, {"bytes": None, "path": "x.jpg"}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"jpg": [b"a", None, b"b"], "image": structs}), path)
    reader = PictureBytesReader(max_bytes=10)
    assert [reader.read(path, "jpg", row, None) for row in (0, 2)] == [b"a", b"b"]
    assert reader.read(path, "image", 0, None) == b"c"
    for column, row, message in (("jpg", 1, "no bytes"), ("image", 1, "not in the table: x.jpg"), ("image", 2, "no b")):
        with pytest.raises(MissingPictureError, match=message) as caught:
            reader.read(path, column, row, None)
        assert caught.value.outcome == "not_found"


def test_large_and_special_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    os.mkfifo(tmp_path / "pipe")
    reader = PictureBytesReader(max_bytes=9)
    for offset, size in ((None, None), (0, 10)):
        with pytest.raises(MissingPictureError, match="larger than 9 bytes: 10") as caught:
            reader.read(str(tmp_path / "a.bin"), None, offset, size)
        assert caught.value.outcome == "too_large"
    with pytest.raises(MissingPictureError, match="not a regular file"):
        reader.read(str(tmp_path / "pipe"), None, None, None)
    with pytest.raises(FileNotFoundError):
        reader.read(str(tmp_path / "none"), None, None, None)


def test_a_table_can_stay_open_and_a_file_never_does(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"jpg": [b"a", b"b"]}), path)
    reader = PictureBytesReader(max_bytes=10)
    reader.read(path, "jpg", 0, None)
    table = reader._table
    reader.close(keep_tables=True)
    assert reader._table is table is not None
    assert reader.read(path, "jpg", 1, None) == b"b"
    assert reader._table is table
    reader.read(path, None, 0, 4)
    assert reader._table is None and reader._file is not None
    reader.close(keep_tables=True)
    assert reader._file is None


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256", "sha512"])
def test_a_digest_is_checked_by_its_length(name: str) -> None:
    digest = hashlib.new(name, b"abc").hexdigest()
    for expected in (digest, digest.upper(), f" {digest}\n", f"{name}:{digest}"):
        check_digest(b"abc", expected)
    with pytest.raises(MissingPictureError, match=f"the {name} is [0-9a-f]+, the list has {digest}") as caught:
        check_digest(b"abd", digest)
    assert caught.value.outcome == "wrong_checksum"


@pytest.mark.parametrize("expected", ["", "abc", "z" * 64, "0x" + "0" * 62, "d41d8cd98f00b204e9800998ecf8427"])
def test_text_that_is_no_digest_is_a_wrong_checksum(expected: str) -> None:
    with pytest.raises(MissingPictureError, match="is no hex digest") as caught:
        check_digest(b"", expected)
    assert caught.value.outcome == "wrong_checksum"
