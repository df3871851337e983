"""Data sets behind URLs: read like local ones, their tars copied once, only the last used kept."""

import io
import os
import pickle
import tarfile
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blipcore.data.loader import make_loader
from blipcore.data.shard_datasets import open_dataset
from blipcore.data.stream import Stream
from blipcore.data.transforms import eval_transform
from blipcore.io import tar_cache as places
from blipcore.io.tar_cache import Folder


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, keys: list[str], texts: bool = True) -> None:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for extension, data in [("png", picture()), *([("txt", f"text of {key}".encode())] if texts else [])]:
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture
def shards(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    for shard in range(6):
        write_shard(tmp_path / "data" / f"{shard:05d}.tar", [f"{shard}{row}" for row in range(3)])
    return tmp_path / "data"


def samples(stream: Stream, count: int) -> list[tuple[str, str]]:
    return [(sample["key"], sample["text"]) for sample in (stream.sample(position) for position in range(count))]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_url_gives_what_the_folder_gives(shards, workers):
    def keys(place: str) -> list[list[str]]:
        loader = make_loader(Stream([place], eval_transform(4), 0, window=2), list, 2, 0, 12, workers)
        return [[sample["key"] for sample in batch] for batch, _ in loader]

    assert keys(f"file://{shards}") == keys(str(shards))
    assert Stream([f"file://{shards}=2"], eval_transform(4), 0).sources[0].name == f"file://{shards}"  # with a weight


def test_tars_are_fetched_once_ahead_and_only_the_last_used_stay(shards, temporary, monkeypatch):
    monkeypatch.setattr(places, "KEEP", 4)
    fetched = []
    get_file = fsspec.implementations.local.LocalFileSystem.get_file
    monkeypatch.setattr(
        fsspec.implementations.local.LocalFileSystem,
        "get_file",
        lambda self, source, target, **more: fetched.append(Path(source).name) or get_file(self, source, target),
    )
    tables(shards)  # so that opening needs no tar
    stream = Stream([f"file://{shards}"], eval_transform(4), 0, window=1)
    assert fetched == []
    stream.sample(0)
    deadline = time.monotonic() + 60
    while len(fetched) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    first, second = (stream.sources[0].tars[shard] for shard in stream._shuffles[0].coming(0)[:2])
    assert sorted(fetched) == sorted([first, second])
    samples(stream, 18)
    assert len(fetched) == len(set(fetched)) == 6 or sorted(set(fetched)) == stream.sources[0].tars
    assert len([path for path in temporary.rglob("*.tar") if not path.name.startswith(".")]) <= 4


def test_another_file_of_the_same_name_is_fetched_anew(shards):
    """A shard set that was made again, under the same names as usual, must not give its texts the old pictures."""
    folder = Folder(f"file://{shards}")
    before = folder.local("00000.tar").read_bytes()
    write_shard(shards / "00000.tar", ["other"])
    assert Folder(f"file://{shards}").local("00000.tar").read_bytes() == (shards / "00000.tar").read_bytes() != before


def test_a_copy_cut_short_on_its_way_is_fetched_again(shards, monkeypatch):
    system, lengths = fsspec.implementations.local.LocalFileSystem, iter([1000, None])
    monkeypatch.setattr(
        system,
        "get_file",
        lambda self, source, target, **more: Path(target).write_bytes(Path(source).read_bytes()[: next(lengths)]),
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert Folder(f"file://{shards}").local("00000.tar").read_bytes() == (shards / "00000.tar").read_bytes()


def test_copies_lie_in_a_folder_of_the_users_own(shards, temporary, monkeypatch):
    folder = Folder(f"file://{shards}")
    assert folder.local("00000.tar").parents[1].stat().st_mode & 0o777 == 0o700
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (temporary / f"blipcore-{owner + 1}").mkdir()  # by somebody who guessed the name
    with pytest.raises(PermissionError, match="belongs to another user: set TMPDIR"):
        Folder(f"file://{shards}").local("00000.tar")


def test_forked_workers_open_the_file_system_anew(shards):
    """Those of S3 and its kind refuse to work in a process that was forked after they were opened."""
    tables(shards)  # so that opening fetches no tar
    place = f"async_wrapper::file://{shards}"
    loader = make_loader(Stream([place], eval_transform(4), 0, window=2), list, 2, 0, 9, workers=1)
    assert [problems for _, problems in loader] == [{}] * 9


def tables(shards: Path) -> None:
    """The tables that `capfilt` and img2dataset write beside the tars; of each, one row has no picture, one no text."""
    for path in sorted(shards.glob("*.tar")):
        keys = [f"{int(path.stem)}{row}" for row in range(3)]
        rows = {
            "key": [*keys, "lost", "silent"],
            "caption": [*(f" text of {key}\n" for key in keys), "a text", "  "],
            "status": ["ok", "success", "ok", "not_found", "ok"],
        }
        pq.write_table(pa.table(rows), path.with_suffix(".parquet"))


def test_the_table_beside_a_tar_spares_reading_it(shards, monkeypatch):
    before = samples(Stream([str(shards)], eval_transform(4), 0), 18)
    tables(shards)
    monkeypatch.setattr("blipcore.io.tars.index_tar", None)
    source = open_dataset(shards)
    assert source.counts == [3] * 6
    monkeypatch.undo()
    assert samples(Stream([str(shards)], eval_transform(4), 0), 18) == before


def test_what_is_not_there_is_one_sentence(tmp_path, shards):
    with pytest.raises(FileNotFoundError, match=r"data set file:///nowhere does not exist"):
        open_dataset("file:///nowhere")
    with pytest.raises(ValueError, match=r"nothing://here cannot be reached"):
        open_dataset("nothing://here")
    folder = pickle.loads(pickle.dumps(Folder(f"file://{shards}")))  # our own
    with pytest.raises(FileNotFoundError, match=r"00009.tar does not exist"):
        folder.local("00009.tar")
    assert str(folder / "../other") == f"file://{shards.parent}/other" and str(folder / "s3://b/c") == "s3://b/c"


def test_a_fetch_that_fails_is_tried_again_and_then_named(shards, monkeypatch):
    failures = iter([True, False] + [True] * places.TRIES)
    system = fsspec.implementations.local.LocalFileSystem
    get_file = system.get_file

    def shaky(self, source, target, **more):
        if next(failures):
            raise ConnectionError("the network is gone")
        get_file(self, source, target)

    monkeypatch.setattr(system, "get_file", shaky)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    folder = Folder(f"file://{shards}")
    assert folder.local("00000.tar").read_bytes() == (shards / "00000.tar").read_bytes()
    with pytest.raises(OSError, match=r"00001.tar could not be fetched: the network is gone"):
        folder.local("00001.tar")
