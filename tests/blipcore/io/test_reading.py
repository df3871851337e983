"""Remote files are fetched in ranges, each once."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import fsspec
import pytest

from blipcore.io import reading, storage
from blipcore.io.reading import RemoteFile, open_read, read_at, read_tail
from blipcore.io.storage import Remote


def test_each_range_is_fetched_once(folder: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", 100)
    data = random.Random(1).randbytes(1050)
    (folder / "x").write_bytes(data)
    fetched: list[int] = []
    fetch = RemoteFile._fetch
    monkeypatch.setattr(RemoteFile, "_fetch", lambda self, number: fetched.append(number) or fetch(self, number))
    with open_read(folder / "x") as file:
        for start, size in ((0, 10), (95, 10), (1000, 100), (0, 1050), (250, 300), (1050, 5)):
            file.seek(start)
            assert file.read(size) == data[start : start + size]
            assert read_at(file, start, size) == data[start : start + size]
        assert file.seek(-50, os.SEEK_END) == 1000 and file.read() == data[1000:]
    assert sorted(fetched) == list(range(11))


def test_reading_at_an_offset_leaves_the_position(folder: Remote, tmp_path: Path) -> None:
    for path in (folder / "x", tmp_path / "x"):
        path.write_bytes(b"0123456789")
        with open_read(path) as file:
            file.seek(2)
            assert read_at(file, 5, 3) == b"567" and read_at(file, 8, 9) == b"89"
            assert file.tell() == 2


def test_the_end_of_a_file(folder: Remote, tmp_path: Path) -> None:
    for path in (folder / "x", tmp_path / "x"):
        path.write_bytes(b"0123456789")
        assert read_tail(path, 3) == b"789" and read_tail(path, 50) == b"0123456789"


def test_a_range_that_is_cut_short_is_requested_again(folder: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.0)
    (folder / "x").write_bytes(b"0123456789")
    memory = type(fsspec.filesystem("memory"))
    cat_file, lengths = memory.cat_file, iter([5, 0, 10])
    monkeypatch.setattr(
        memory, "cat_file", lambda self, path, start, end: cat_file(self, path, start, end)[: next(lengths)]
    )
    with open_read(folder / "x") as file:
        assert file.read() == b"0123456789"


def test_the_full_disk_is_named(folder: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (folder / "x").write_bytes(b"x")

    def raise_disk_full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", raise_disk_full)
    with pytest.raises(OSError, match=f"'{tmp_path}'"), open_read(folder / "x") as file:
        file.read()
    assert list(tmp_path.iterdir()) == []
