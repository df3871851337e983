"""Shards in S3 give the tables of local ones, byte for byte, also if requests fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import contents
from s3 import VARIABLES, S3Server, remote_contents, upload
from web import Web, picture

from blipcore.io import reading, storage
from blipcore.io.lock import FolderLockedError, lock_folder
from blipcore.io.samples import read_samples
from blipcore.io.storage import to_path
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.export.stage import ExportConfig, export_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.ingest.download import download
from capfilt.ingest.download_config import DownloadConfig
from capfilt.ingest.pack import PackConfig, pack
from capfilt.report.stage import ReportConfig, write_report

pytest.importorskip("s3fs", reason="S3 needs the extra s3")
pytest.importorskip("moto", reason="the S3 server is moto's")

SHARDS, PICTURES = 3, 8


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    store = S3Server()
    before = {name: os.environ.get(name) for name in store.variables}
    os.environ.update(store.variables)  # inherited by workers
    yield store
    store.close()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def local_data(write_shards, tiny_blip: Path, tmp_path_factory) -> Path:
    """A local shard set with captions and verdicts."""
    data = write_shards(tmp_path_factory.mktemp("s3") / "data", SHARDS, PICTURES)
    run(str(data), tiny_blip)
    return data


def run(data: str, model: Path, **options) -> dict:
    settings = {"data": data, "model": str(model), "name": "b", "batch_size": 8, "device": "cpu", **options}
    captioned = caption_shards(CaptionConfig(**settings), progress=False)
    assert captioned["shards"]["failed"] == {}
    return filter_shards(FilterConfig(**settings), progress=False)


def upload_tars(data: Path, url: str, staging: Path) -> str:
    """Upload the tars of a shard set, without its tables."""
    staging.mkdir()
    for tar in data.glob("*.tar"):
        (staging / tar.name).hardlink_to(tar)
    upload(staging, url)
    return url


def test_s3_equals_local_byte_for_byte_although_requests_fail(
    store: S3Server, local_data: Path, tiny_blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", 4096)  # several ranges per tar
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.05)
    url = upload_tars(local_data, "s3://bucket/data", tmp_path / "tars")
    store.failure_rate, store.failures = 0.15, 0
    try:
        summary = run(url, tiny_blip)
    finally:
        store.failure_rate = 0.0
    assert store.failures > 10
    assert summary["texts"] == 2 * SHARDS * PICTURES and summary["shards"]["done"] == SHARDS
    assert remote_contents(url) == contents(local_data)
    assert any("bytes=4096-" in request for request in store.requests), "no range was requested"

    # A second run reads listings, manifests and one caption table, whose columns it checks.
    store.requests.clear()
    assert run(url, tiny_blip)["shards"] == {"done": 0, "skipped": SHARDS, "failed": {}}
    opened = [r for r in store.requests if r.startswith("GET") and (".parquet" in r or ".tar" in r)]
    assert opened == ["GET /bucket/data/captions/b/00000.parquet"]


def test_pictures_and_tables_may_be_in_different_places(
    store: S3Server, local_data: Path, tiny_blip: Path, tmp_path: Path
) -> None:
    url = upload_tars(local_data, "s3://bucket/pictures", tmp_path / "tars")
    run(url, tiny_blip, out=str(tmp_path / "work"))
    run(str(local_data), tiny_blip, out="s3://bucket/work")
    tables = {
        name: data for name, data in contents(local_data).items() if name[0] in "csf" and name.endswith(".parquet")
    }
    for work in (contents(tmp_path / "work"), remote_contents("s3://bucket/work")):
        assert {name: data for name, data in work.items() if name.endswith(".parquet")} == tables
    assert {name.split("/")[0] for name in remote_contents("s3://bucket/pictures")} == {
        f"{n:05d}.tar" for n in range(SHARDS)
    }


@pytest.mark.slow
def test_worker_processes_read_the_store(store: S3Server, local_data: Path, tiny_blip: Path, tmp_path: Path) -> None:
    url = upload_tars(local_data, "s3://bucket/processes", tmp_path / "tars")
    run(url, tiny_blip, workers=2)
    assert remote_contents(url) == contents(local_data)


def test_a_second_run_in_the_same_remote_folder_is_refused(
    store: S3Server, local_data: Path, tiny_blip: Path, tmp_path: Path
) -> None:
    url = upload_tars(local_data, "s3://bucket/twice", tmp_path / "tars")
    with (
        lock_folder(to_path(url) / "captions" / "b"),
        pytest.raises(FolderLockedError, match="s3://bucket/twice/captions/b is being"),
    ):
        run(url, tiny_blip)
    assert run(url, tiny_blip)["shards"]["done"] == SHARDS
    assert not [name for name in remote_contents(url) if "lease" in name]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures, some with texts beside them, in hidden folders or damaged."""
    folder = tmp_path / "photos"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    for number, name in enumerate(("b.jpg", "a b.jpg", "deep/c.jpg", "deep/.hidden/d.jpg")):
        (folder / name).write_bytes(picture(number))
    (folder / "a b.txt").write_text("a text")
    (folder / "broken.png").write_bytes(b"")
    return folder


def tars_and_tables(folder: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in folder.items() if name.endswith((".tar", ".parquet"))}


def test_pack_reads_and_writes_s3(
    store: S3Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "lists").mkdir()
    rows = [("a b.jpg", "one"), ("deep/c.jpg", "two"), ("../outside.jpg", "three"), ("none.jpg", "four")]
    images, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "lists" / "list.parquet")
    (tmp_path / "tables").mkdir()
    jpegs = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    pq.write_table(pa.table({"jpg": [*jpegs, None], "caption": ["x", "y", "z"]}), tmp_path / "tables" / "t.parquet")
    for name in ("photos", "lists", "tables"):
        upload(tmp_path / name, f"s3://bucket/{name}")

    def outcomes(source: str, out: str, **options: str) -> dict[str, int]:
        return pack(PackConfig(source, out, workers=1, **options), progress=False)["outcomes"]

    for kind, source, file in (
        ("folder", "photos", None),
        ("listed", "photos", "lists/list.parquet"),
        ("tables", "tables", None),
        ("tars", "packed/folder", None),  # the output of the first
    ):
        folder, url = tmp_path / "packed" / kind, f"s3://bucket/packed/{kind}"
        local = {"annotations": str(tmp_path / file)} if file else {}
        remote = {"annotations": f"s3://bucket/{file}"} if file else {}
        local_outcomes = outcomes(str(tmp_path / source), str(folder), **local)
        assert outcomes(f"s3://bucket/{source}", url, **remote) == local_outcomes and local_outcomes["ok"] >= 2
        assert tars_and_tables(remote_contents(url)) == tars_and_tables(contents(folder)), kind
    with pytest.raises(FileNotFoundError, match="No file or folder at s3://bucket/nowhere"):
        outcomes("s3://bucket/nowhere", str(tmp_path / "out"))


def test_download_reads_and_writes_s3(store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "lists").mkdir()
    with Web() as web:
        rows = [f"{web.url}/{'missing' if number % 3 == 2 else 'good'}/{number}.jpg" for number in range(12)]
        (tmp_path / "lists" / "list.txt").write_text("\n".join(rows))
        upload(tmp_path / "lists", "s3://bucket/urls")
        settings = {"shard_size": 5, "workers": 1, "allow_private": True}
        download(DownloadConfig(str(tmp_path / "lists/list.txt"), str(tmp_path / "data"), **settings), progress=False)
        download(DownloadConfig("s3://bucket/urls/list.txt", "s3://bucket/downloaded", **settings), progress=False)
        assert remote_contents("s3://bucket/downloaded") == contents(tmp_path / "data")
        again = download(
            DownloadConfig("s3://bucket/urls/list.txt", "s3://bucket/downloaded", **settings), progress=False
        )
    assert again["shards"] == {"done": 0, "skipped": 3, "failed": {}}
    assert [name for name in contents(tmp_path / "cache") if not name.startswith("matplotlib")] == []


def test_report_export_and_pretrain_read_and_write_s3(
    store: S3Server, local_data: Path, tiny_blip: Path, tmp_path: Path
) -> None:
    from blipcore.train.optim import TrainConfig
    from blipcore.train.runs import PretrainRun, pretrain

    upload(local_data, "s3://bucket/whole")
    filtered = "s3://bucket/whole/filtered/b"
    summary = write_report(ReportConfig(filtered, out="s3://bucket/pages/report.html"))
    assert summary["pictures_shown"] > 0
    assert len(remote_contents("s3://bucket/pages")["report.html"]) == summary["bytes"]
    for form in ("webdataset", "parquet", "json"):
        export_shards(ExportConfig(str(local_data / "filtered" / "b"), str(tmp_path / form), form), progress=False)
        export_shards(ExportConfig(filtered, f"s3://bucket/exported/{form}", form), progress=False)
        with_paths = {"manifest.json", "README.md"}
        local, remote = contents(tmp_path / form), remote_contents(f"s3://bucket/exported/{form}")
        assert {n: c for n, c in remote.items() if n not in with_paths} == {
            n: c for n, c in local.items() if n not in with_paths
        }
        assert with_paths <= remote.keys()
    train = TrainConfig(steps=2, batch_size=4, dtype="fp32", device="cpu")
    for number, data in enumerate((filtered, "s3://bucket/whole")):
        run = PretrainRun(data=[data], init=str(tiny_blip), train=train)
        assert pretrain(run, tmp_path / f"run{number}")["steps"] == 2


def test_missing_remote_folders_are_named(store: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="No folder at s3://bucket/none"):
        run("s3://bucket/none", Path("model"))
    with pytest.raises(FileNotFoundError, match="No folder at s3://no-such-bucket/data"):
        run("s3://no-such-bucket/data", Path("model"))
    with pytest.raises(FileNotFoundError) as caught:
        list(read_samples("s3://bucket/none/00000.tar"))
    assert caught.value.filename == "s3://bucket/none/00000.tar"
    assert set(VARIABLES) <= set(os.environ)
