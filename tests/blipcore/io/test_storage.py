"""Remote paths behave like local ones, and temporary failures of a network are retried."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
import pytest

from blipcore.io import storage
from blipcore.io.reading import read_head
from blipcore.io.storage import AnyPath, Remote, existing_paths, list_files, list_names, resolve_reference, to_path
from blipcore.io.writing import write_json

FailRequests = Callable[[int, str, Exception], list[int]]


def test_strings_become_local_or_remote_paths() -> None:
    assert to_path("data") == Path("data") and to_path("file:///data/x") == Path("/data/x")
    data = to_path("s3://bucket/data/")
    assert (str(data), data.name, str(data.parent)) == ("s3://bucket/data", "data", "s3://bucket")
    assert str(data / "captions" / "x.v2.parquet") == "s3://bucket/data/captions/x.v2.parquet"
    assert (data / "x.v2.parquet").stem == "x.v2"
    assert (data / "x").is_relative_to(data) and not Remote("s3://bucket/data2").is_relative_to(data)
    with pytest.raises(TypeError, match="not a local file"):
        os.fspath(data)


def test_references_are_relative_absolute_or_urls() -> None:
    data = Remote("s3://bucket/data")
    assert str(resolve_reference(data / "captions" / "x", "../..")) == "s3://bucket/data"
    assert resolve_reference(data, "/local/data") == Path("/local/data")
    assert resolve_reference(Path("/a/b"), "../c") == Path("/a/c")
    assert str(resolve_reference(Path("/a"), "gs://bucket/data")) == "gs://bucket/data"


def test_one_listing_for_any_number_of_files(folder: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots: Iterable[AnyPath] = (folder, tmp_path)
    for root in roots:
        assert list_names(root / "nowhere") == [] and existing_paths([root / "nowhere" / "x"]) == set()
        write_json(root / "b.json", {})
        write_json(root / "inner" / "a.json", {})
        assert list_names(root) == ["b.json", "inner"]
        wanted = [root / "a.json", root / "b.json", root / "inner" / "a.json"]
        assert existing_paths(wanted) == set(wanted[1:])
    assert sorted(path.name for path in folder.glob("*.json")) == ["b.json"]
    assert folder.is_dir() and (folder / "b.json").is_file() and not (folder / "c.json").exists()
    listed: list[AnyPath] = []
    monkeypatch.setattr(storage, "list_names", lambda path: listed.append(path) or [])
    existing_paths(folder / f"{number:05d}.parquet" for number in range(1000))
    assert listed == [folder]


def test_all_files_below_a_folder(folder: Remote, tmp_path: Path) -> None:
    roots: Iterable[AnyPath] = (folder, tmp_path)
    for root in roots:
        for name in ("b", "a/d", "a/c/e", ".hidden", "a/.hidden/f"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(name.encode())
        assert list(list_files(root).items()) == [("b", 1), ("a/d", 3), ("a/c/e", 5)]
    (tmp_path / "z link").symlink_to(tmp_path / "a")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    assert list_files(tmp_path) == {"z link/": -1, "b": 1, "broken": -1, "a/d": 3, "a/c/e": 5}


def test_a_permanent_error_is_not_retried(folder: Remote, fail_requests: FailRequests) -> None:
    calls = fail_requests(1, "cat_file", PermissionError("signature"))
    with pytest.raises(PermissionError) as caught:
        (folder / "x").read_bytes()
    assert (caught.value.errno, caught.value.filename, calls[0]) == (errno.EACCES, f"{folder}/x", 1)


def test_a_failing_network_does_not_pass_for_a_missing_file(folder: Remote, fail_requests: FailRequests) -> None:
    (folder / "x").write_bytes(b"x")
    fail_requests(2, "info", ConnectionResetError("reset by peer"))
    assert (folder / "x").exists() and (folder / "x").is_file() and folder.is_dir()
    fail_requests(9, "info", ConnectionResetError("reset by peer"))
    with pytest.raises(OSError, match="does not answer after 5 tries"):
        (folder / "x").is_file()


def test_a_download_of_another_size_is_repeated(
    folder: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.0)
    (folder / "x").write_bytes(b"0123456789")
    lengths = iter([5, 0, 10])
    monkeypatch.setattr(
        type(fsspec.filesystem("memory")),
        "get_file",
        lambda self, source, target: Path(target).write_bytes(self.cat_file(source)[: next(lengths)]),
    )
    (folder / "x").download(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_missing_packages_and_unknown_protocols_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"nonsense://x cannot be read or written: Protocol not known"):
        list_names(to_path("nonsense://x"))

    def raise_import_error(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", raise_import_error)
    with pytest.raises(ImportError, match=r"s3:// cannot be used here \(Install s3fs .*pip install 'capfilt\[s3\]'"):
        list_names(to_path("s3://bucket"))


def test_a_zip_archive_is_a_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("photos/a.jpg", b"0123456789")
        archive.writestr("photos/deep/b.txt", b"text")
    root = to_path(f"zip://::{tmp_path / 'a.zip'}")
    assert root.is_dir() and (root / "photos").is_dir() and not (root / "none").exists()
    assert list_files(root) == {"photos/a.jpg": 10, "photos/deep/b.txt": 4}
    assert str(root / "photos" / "a.jpg") == f"zip://photos/a.jpg::{tmp_path / 'a.zip'}"
    assert (root / "photos/a.jpg").name == "a.jpg"
    assert (root / "photos/a.jpg").read_bytes() == b"0123456789" and read_head(root / "photos/a.jpg", 3) == b"012"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:  # another archive of this name
        archive.writestr("c.jpg", b"c")
    os.utime(tmp_path / "a.zip", (1, 1))
    assert list_files(root) == {"c.jpg": 1}


def test_a_damaged_zip_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"a\.zip is not a whole zip archive"):
        list_files(to_path(f"zip://::{tmp_path / 'a.zip'}"))
