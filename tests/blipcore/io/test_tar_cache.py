"""Remote tars are downloaded once per machine, ahead of their use, and only the last used ones stay."""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tar_files import write_tar

from blipcore.data.loader import make_loader
from blipcore.data.shard_datasets import ShardSetDataset, open_dataset
from blipcore.data.stream import Stream
from blipcore.data.transforms import EvalTransform
from blipcore.io import storage, tar_cache
from blipcore.io.storage import Remote
from blipcore.io.tar_cache import TarCache

MEMORY = type(fsspec.filesystem("memory"))
FailRequests = Callable[[int, str, Exception], list[int]]


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, with a path short enough for sockets."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six local shards of three pictures, without tables."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    (tmp_path / "data").mkdir()
    for shard in range(6):
        keys = [f"{shard}{row}" for row in range(3)]
        images = {f"{key}.png": buffer.getvalue() for key in keys}
        texts = {f"{key}.txt": f"text of {key}".encode() for key in keys}
        write_tar(tmp_path / "data" / f"{shard:05d}.tar", images | texts)
    return tmp_path / "data"


@pytest.fixture
def remote(shards: Path, folder: Remote) -> Remote:
    """The same shards in a remote folder, with tables."""
    write_tables(shards)
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def write_tables(shards: Path) -> None:
    """Write tables like capfilt and img2dataset; one row has no picture, one no text."""
    for path in sorted(shards.glob("*.tar")):
        keys = [f"{int(path.stem)}{row}" for row in range(3)]
        rows = {
            "key": [*keys, "lost", "silent"],
            "caption": [*(f" text of {key}\n" for key in keys), "a text", "  "],
            "status": ["ok", "success", "ok", "not_found", "ok"],
        }
        pq.write_table(pa.table(rows), path.with_suffix(".parquet"))


def read_stream(stream: Stream, count: int) -> list[tuple[str, str]]:
    samples = (stream.sample(position) for position in range(count))
    return [(sample["key"], sample["text"]) for sample in samples]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_url_gives_the_samples_of_the_folder(shards: Path, remote: Remote, workers: int) -> None:
    def read_keys(spec: str) -> list[list[str]]:
        loader = make_loader(Stream([spec], EvalTransform(4), 0, window=2), list, 2, 0, 12, workers)
        return [[sample["key"] for sample in batch] for batch, _ in loader]

    assert read_keys(str(remote)) == read_keys(str(shards)) == read_keys(f"file://{shards}")
    assert Stream([f"{remote}=2"], EvalTransform(4), 0).datasets[0].name == str(remote)  # with a weight


def test_tars_are_downloaded_once_and_ahead_and_only_the_last_used_stay(
    remote: Remote, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_cache, "KEEP", 4)
    downloaded: list[str] = []
    get_file = MEMORY.get_file
    monkeypatch.setattr(
        MEMORY,
        "get_file",
        lambda self, source, target: downloaded.append(Path(source).name) or get_file(self, source, target),
    )
    stream = Stream([str(remote)], EvalTransform(4), 0, window=1)
    dataset = stream.datasets[0]
    assert isinstance(dataset, ShardSetDataset)
    assert downloaded == []  # the tables are enough to open it
    stream.sample(0)
    deadline = time.monotonic() + 60
    while len(downloaded) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    first, second = (dataset.tars[shard] for shard in stream._shuffles[0].upcoming_shards(0)[:2])
    assert sorted(downloaded) == sorted([first, second])
    read_stream(stream, 18)
    assert sorted(set(downloaded)) == dataset.tars
    assert len([path for path in temporary.rglob("*.tar") if not path.name.startswith(".")]) <= 4


def test_a_new_file_of_the_same_name_is_downloaded(remote: Remote) -> None:
    """The texts of a new shard set must not meet old pictures."""
    before = TarCache(remote).local("00000.tar").read_bytes()
    (remote / "00000.tar").write_bytes(b"other")
    assert TarCache(remote).local("00000.tar").read_bytes() == b"other" != before


def test_a_download_that_fails_is_retried_and_then_named(remote: Remote, fail_requests: FailRequests) -> None:
    fail_requests(2, "get_file", ConnectionError("the network is down"))
    assert TarCache(remote).local("00000.tar").read_bytes() == (remote / "00000.tar").read_bytes()
    fail_requests(99, "get_file", ConnectionError("the network is down"))
    with pytest.raises(OSError, match=r"00001.tar does not answer after 5 tries \(the network is down\)"):
        TarCache(remote).local("00001.tar")


def test_copies_are_in_a_folder_of_the_user(remote: Remote, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TarCache(remote).local("00000.tar").parents[1].stat().st_mode & 0o777 == 0o700
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (temporary / f"blipcore-{owner + 1}").mkdir()  # by another user who guessed the name
    with pytest.raises(PermissionError, match="belongs to another user: set TMPDIR"):
        TarCache(remote).local("00000.tar")


def test_forked_workers_open_the_file_system_again(shards: Path) -> None:
    """Asynchronous file systems, such as S3's, cannot be used after a fork."""
    write_tables(shards)  # so that opening downloads no tar
    url = f"async_wrapper::file://{shards}"
    loader = make_loader(Stream([url], EvalTransform(4), 0, window=2), list, 2, 0, 9, workers=1)
    assert [problems for _, problems in loader] == [{}] * 9


def test_the_table_beside_a_tar_saves_reading_it(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_stream(Stream([str(shards)], EvalTransform(4), 0), 18)
    write_tables(shards)
    monkeypatch.setattr("blipcore.io.samples.index_samples", None)
    assert open_dataset(shards).counts == [3] * 6
    monkeypatch.undo()
    assert read_stream(Stream([str(shards)], EvalTransform(4), 0), 18) == before


def test_missing_folders_and_tars_are_named(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.0)
    with pytest.raises(FileNotFoundError, match=r"No data set at memory://nowhere"):
        open_dataset("memory://nowhere")
    with pytest.raises(ValueError, match=r"nothing://here cannot be read or written"):
        open_dataset("nothing://here")
    cache = pickle.loads(pickle.dumps(TarCache(remote)))
    with pytest.raises(FileNotFoundError) as caught:
        cache.local("00009.tar")
    assert caught.value.filename == f"{remote}/00009.tar"
