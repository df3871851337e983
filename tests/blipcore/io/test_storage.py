"""Remote files read like local ones, appear whole or not at all, and a network's bad moments stay unseen."""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from blipcore.io import storage
from blipcore.io.reading import _Ranges, open_read, read_tail
from blipcore.io.samples import TarSample, read_samples
from blipcore.io.storage import Remote, existing, list_names, resolve_reference, to_path
from blipcore.io.writing import atomic_write, remove_temporary_files, write_json
from capfilt.shards.format import CAPTIONS, images_of, write_shard
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_counts, read_table, write_table


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Remote:
    """A folder of fsspec's memory, of a name of its own."""
    return Remote(f"memory://storage/{request.node.name}")


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch):
    """Make each request to the memory fail `times` before it is answered; counts them."""
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.0)
    memory = type(fsspec.filesystem("memory"))

    def make(times: int, method: str, error: Exception) -> list[int]:
        whole, left, calls = getattr(memory, method), [times], [0]

        def fail(self, *args, **options):
            calls[0] += 1
            if left[0]:
                left[0] -= 1
                raise error
            left[0] = times
            return whole(self, *args, **options)

        monkeypatch.setattr(memory, method, fail)
        return calls

    return make


def test_places_are_told_apart_and_joined() -> None:
    assert to_path("data") == Path("data") and to_path("file:///data/x") == Path("/data/x")
    data = to_path("s3://bucket/data/")
    assert (str(data), data.name, str(data.parent)) == ("s3://bucket/data", "data", "s3://bucket")
    assert str(data / "captions" / "x.v2.parquet") == "s3://bucket/data/captions/x.v2.parquet"
    assert (data / "x.v2.parquet").stem == "x.v2"
    assert str(resolve_reference(data / "captions" / "x", "../..")) == "s3://bucket/data"
    assert resolve_reference(data, "/local/data") == Path("/local/data") and resolve_reference(
        Path("/a/b"), "../c"
    ) == Path("/a/c")
    assert str(resolve_reference(Path("/a"), "gs://bucket/data")) == "gs://bucket/data"
    assert (data / "x").is_relative_to(data) and not Remote("s3://bucket/data2").is_relative_to(data)
    with pytest.raises(TypeError, match="not a local file"):
        os.fspath(data)


def test_one_listing_for_any_number_of_files(folder: Remote, tmp_path: Path, monkeypatch) -> None:
    for root in (folder, tmp_path):
        assert list_names(root / "nowhere") == [] and existing([root / "nowhere" / "x"]) == set()
        write_json(root / "b.json", {})
        write_json(root / "inner" / "a.json", {})
        assert list_names(root) == ["b.json", "inner"]
        wanted = [root / "a.json", root / "b.json", root / "inner" / "a.json"]
        assert existing(wanted) == set(wanted[1:])
    assert sorted(path.name for path in folder.glob("*.json")) == ["b.json"]
    assert folder.is_dir() and (folder / "b.json").is_file() and not (folder / "c.json").exists()
    listed = []
    monkeypatch.setattr(storage, "list_names", lambda place: listed.append(place) or [])
    existing(folder / f"{number:05d}.parquet" for number in range(1000))
    assert listed == [folder]


def test_a_shard_set_elsewhere_reads_like_one_here(folder: Remote, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "BLOCK", 1000)  # many ranges, members across them
    rng = random.Random(0)
    sizes = [rng.randrange(3000) for _ in range(40)]
    pictures = [
        TarSample(f"{n:03d}", b"\xff\xd8\xff" + rng.randbytes(size), f"text {n}") for n, size in enumerate(sizes)
    ]
    for root in (folder, tmp_path):
        write_shard(root / "00000.tar", pictures)
        write_table(root / "captions" / "c" / "00000.parquet", CAPTIONS.empty_table(), {"pictures": 40})
        write_json(root / "captions" / "c" / "manifest.json", {"stage": "caption", "images": "../.."})
    here, there = ShardSet.open(tmp_path), ShardSet.open(str(folder))
    assert here.shards == there.shards == ["00000"]
    assert here.tar("00000").read_bytes() == there.tar("00000").read_bytes()
    assert list(read_samples(there.tar("00000"))) == pictures
    table = folder / "captions" / "c" / "00000.parquet"
    assert read_table(table, ["key"], optional=("text", "other")).column_names == ["key", "text"]
    assert read_counts([table]) == {"pictures": 40}
    assert images_of(folder / "captions" / "c") == folder
    with pytest.raises(FileNotFoundError, match="No table at memory://"):
        read_table(folder / "none.parquet")
    with pytest.raises(FileNotFoundError, match="No folder at memory://"):
        ShardSet.open(folder / "none")
    with pytest.raises(ValueError, match="output of 'caption', not a shard set; its pictures are in memory://"):
        ShardSet.open(folder / "captions" / "c")


def test_each_block_comes_once_whatever_is_read(folder: Remote, monkeypatch) -> None:
    monkeypatch.setattr(storage, "BLOCK", 100)
    data = random.Random(1).randbytes(1050)
    (folder / "x").write_bytes(data)
    fetched = []
    fetch = _Ranges._fetch
    monkeypatch.setattr(_Ranges, "_fetch", lambda self, block: fetched.append(block) or fetch(self, block))
    with open_read(folder / "x") as file:
        for start, size in ((0, 10), (95, 10), (1000, 100), (0, 1050), (250, 300), (1050, 5)):
            file.seek(start)
            assert file.read(size) == data[start : start + size]
        assert file.seek(-50, os.SEEK_END) == 1000 and file.read() == data[1000:]
    assert sorted(fetched) == list(range(11))
    assert read_tail(folder / "x", 60) == data[-60:] and read_tail(folder / "x", 5000) == data


def test_a_large_footer_is_read_whole(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", pa.table({f"column {n}": [n] for n in range(2000)}), {"rows": 1})
    assert (tmp_path / "a.parquet").stat().st_size > 2 * (64 << 10)
    assert read_counts([tmp_path / "a.parquet"]) == {"rows": 1}


@pytest.fixture
def renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the memory rename, as SFTP and HDFS do; by itself it is a store of objects."""

    def mv(self, old: str, new: str) -> None:
        self.store[new] = self.store.pop(old)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "mv", mv)


@pytest.mark.parametrize("method", ["cat_file", "put_file", "mv"])
def test_bad_moments_of_the_network_are_waited_out(folder: Remote, renaming, moody, method: str) -> None:
    calls = moody(3, method, ConnectionResetError("reset by peer"))
    write_table(folder / "a.parquet", CAPTIONS.empty_table(), {"pictures": 1})
    assert read_counts([folder / "a.parquet"]) == {"pictures": 1}
    assert calls[0] == 4
    assert list_names(folder) == ["a.parquet"]


def test_what_does_not_mend_is_one_sentence_and_leaves_nothing(folder: Remote, renaming, moody) -> None:
    calls = moody(100, "mv", TimeoutError("no answer"))
    with pytest.raises(OSError, match=r"a\.parquet\..*tmp does not answer after 5 tries \(no answer\)\."):
        write_table(folder / "a.parquet", CAPTIONS.empty_table())
    assert calls[0] == 5 and list_names(folder) == []
    calls = moody(1, "cat_file", PermissionError("signature"))
    with pytest.raises(PermissionError) as caught:
        (folder / "x").read_bytes()
    assert (caught.value.errno, caught.value.filename, calls[0]) == (errno.EACCES, f"{folder}/x", 1)


def test_a_bad_moment_is_no_answer_that_nothing_is_there(folder: Remote, moody) -> None:
    (folder / "x").write_bytes(b"x")
    moody(2, "info", ConnectionResetError("reset by peer"))
    assert (folder / "x").exists() and (folder / "x").is_file() and folder.is_dir()
    moody(9, "info", ConnectionResetError("reset by peer"))
    with pytest.raises(OSError, match="does not answer after 5 tries"):
        (folder / "x").is_file()


def test_a_range_that_comes_short_is_asked_for_again(folder: Remote, monkeypatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.0)
    (folder / "x").write_bytes(b"0123456789")
    memory = type(fsspec.filesystem("memory"))
    whole, short = memory.cat_file, [2]

    def cut(self, path, start=None, end=None):
        short[0] -= 1
        return whole(self, path, start=start, end=end)[: 5 if short[0] >= 0 else None]

    monkeypatch.setattr(memory, "cat_file", cut)
    with open_read(folder / "x") as file:
        assert file.read() == b"0123456789"


def test_packages_and_protocols_that_are_missing_are_sentences(monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"nonsense://x is no place to read from or write to: Protocol not known"):
        list_names(to_path("nonsense://x"))

    def absent(url: str):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(ImportError, match=r"s3:// cannot be used here \(Install s3fs .*pip install 'capfilt\[s3\]'"):
        list_names(to_path("s3://bucket"))


def test_sweeping_takes_what_was_to_become_ours(tmp_path: Path, folder: Remote) -> None:
    for root in (tmp_path, folder):
        for name in (".00000.parquet.0123abcd.tmp", ".00001.parquet.0123abcd.tmp", "00002.parquet", ".hidden"):
            write_json(root / "x.json", {})
            (root / name).write_bytes(b"")
        remove_temporary_files(root, ["00001.parquet", "00002.parquet"])
        assert list_names(root) == [".00000.parquet.0123abcd.tmp", ".hidden", "00002.parquet", "x.json"]
        remove_temporary_files(root)
        assert list_names(root) == [".hidden", "00002.parquet", "x.json"]


def test_a_file_system_that_cannot_sync_a_folder_is_written_to(tmp_path: Path, monkeypatch) -> None:
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EINVAL
    write_json(tmp_path / "a.json", {})
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "b.json", {})


def test_which_disk_is_full_is_told(tmp_path: Path, folder: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'"), atomic_write(tmp_path / "a"):
        raise full
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    full.filename = None
    with pytest.raises(OSError, match=f"'{tmp_path}/capfilt-.*'"), atomic_write(folder / "a"):
        raise full
    full.filename = None
    (folder / "x").write_bytes(b"x")
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=f"'{tmp_path}'"), open_read(folder / "x") as file:
        file.read()
    assert list(tmp_path.iterdir()) == [] and list_names(folder) == ["x"]


def test_nothing_appears_when_the_writer_fails(folder: Remote, tmp_path: Path) -> None:
    for root in (folder, tmp_path):
        with pytest.raises(RuntimeError), atomic_write(root / "a") as file:
            file.write(b"half")
            raise RuntimeError("half way")
        assert list_names(root) == []
