"""Files appear when they are complete, or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from blipcore.io.storage import Remote, list_names
from blipcore.io.writing import atomic_path, atomic_write, remove_temporary_files, write_json

FailRequests = Callable[[int, str, Exception], list[int]]


def test_nothing_appears_if_the_writer_fails(folder: Remote, tmp_path: Path) -> None:
    for root in (folder, tmp_path):
        with pytest.raises(RuntimeError), atomic_write(root / "a") as file:
            file.write(b"half")
            raise RuntimeError("in the middle")
        assert list_names(root) == []


def test_a_failed_write_keeps_the_old_file(folder: Remote, tmp_path: Path) -> None:
    for root in (folder, tmp_path):
        (root / "a").write_bytes(b"old")
        with pytest.raises(RuntimeError), atomic_write(root / "a") as file:
            file.write(b"half")
            raise RuntimeError("in the middle")
        assert list_names(root) == ["a"] and (root / "a").read_bytes() == b"old"
        with atomic_write(root / "a") as file:
            file.write(b"new")
        assert list_names(root) == ["a"] and (root / "a").read_bytes() == b"new"


@pytest.mark.parametrize("method", ["put_file", "mv", "cat_file"])
def test_temporary_failures_are_retried(
    folder: Remote, renaming: None, fail_requests: FailRequests, method: str
) -> None:
    calls = fail_requests(3, method, ConnectionResetError("reset by peer"))
    write_json(folder / "a.json", {"pictures": 1})
    assert (folder / "a.json").read_text() == '{\n  "pictures": 1\n}\n'
    assert calls[0] == 4
    assert list_names(folder) == ["a.json"]


def test_a_lasting_failure_is_one_sentence_and_leaves_nothing(
    folder: Remote, renaming: None, fail_requests: FailRequests
) -> None:
    calls = fail_requests(100, "mv", TimeoutError("no answer"))
    with pytest.raises(OSError, match=r"a\.json\..*tmp does not answer after 5 tries \(no answer\)\."):
        write_json(folder / "a.json", {})
    assert calls[0] == 5 and list_names(folder) == []


def test_temporary_files_of_killed_runs_are_removed(tmp_path: Path, folder: Remote) -> None:
    for root in (tmp_path, folder):
        for name in (".00000.parquet.0123abcd.tmp", ".00001.parquet.0123abcd.tmp", "00002.parquet", ".hidden"):
            (root / name).write_bytes(b"")
        remove_temporary_files(root, ["00001.parquet", "00002.parquet"])
        assert list_names(root) == [".00000.parquet.0123abcd.tmp", ".hidden", "00002.parquet"]
        remove_temporary_files(root)
        assert list_names(root) == [".hidden", "00002.parquet"]


def test_a_folder_that_a_killed_run_was_writing_is_left_to_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp" / "weights").write_bytes(b"half")
    remove_temporary_files(tmp_path)
    with atomic_path(tmp_path / "model") as folder:
        folder.mkdir()
    assert list_names(tmp_path) == ["model"]


def test_a_file_system_that_cannot_sync_a_folder_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync
    number = errno.EINVAL

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    write_json(tmp_path / "a.json", {})
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "b.json", {})


def test_the_full_disk_is_named(tmp_path: Path, folder: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'"), atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match=f"'{tmp_path}'"), atomic_write(folder / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == [] and list_names(folder) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
        assert [path.name for path in (tmp_path / "model").iterdir()] == [content]
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
        raise RuntimeError("in the middle")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["second"]
    with atomic_path(tmp_path / "model") as temporary:
        temporary.write_text("a file")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (tmp_path / "model").is_file()


@pytest.mark.parametrize("free", [0, 1 << 30])
def test_a_library_that_hides_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """torch.save raises a RuntimeError without a cause."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    with (
        pytest.raises(RuntimeError if free else OSError, match="failed" if free else "No space left") as caught,
        atomic_path(tmp_path / "model.pth") as staging,
    ):
        staging.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert free or caught.value.filename == str(tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux has files without a name")
def test_a_killed_upload_leaves_no_temporary_file(
    folder: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with atomic_write(folder / "a") as file:
        file.write(b"whole")
        assert list(tmp_path.iterdir()) == []
    assert (folder / "a").read_bytes() == b"whole"
