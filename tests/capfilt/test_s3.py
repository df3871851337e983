"""Shards in S3 give the tables of local ones, byte for byte, also from a server that has bad moments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import contents
from s3 import VARIABLES, Store, files, upload
from web import Web, picture

from blipcore.io import storage
from blipcore.io.samples import read_pictures
from blipcore.io.storage import to_path
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.export.stage import ExportConfig, export
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.ingest.download import DownloadConfig, download
from capfilt.ingest.pack import PackConfig, pack
from capfilt.report.stage import ReportConfig, report
from capfilt.shards.lock import Occupied, lock_folder

pytest.importorskip("s3fs", reason="S3 needs the extra s3")
pytest.importorskip("moto", reason="the S3 server is moto's")

SHARDS, PICTURES = 3, 8


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    store = Store()
    before = {name: os.environ.get(name) for name in store.variables}
    os.environ.update(store.variables)  # what users set too, and workers inherit
    yield store
    store.close()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def here(write_shards, tiny_blip: Path, tmp_path_factory) -> Path:
    """A shard set with captions and verdicts, made locally."""
    data = write_shards(tmp_path_factory.mktemp("s3") / "data", SHARDS, PICTURES)
    run(str(data), tiny_blip)
    return data


def run(data: str, model: Path, **options) -> dict:
    settings = {"data": data, "model": str(model), "name": "b", "batch_size": 8, "device": "cpu", **options}
    told = caption_shards(CaptionConfig(**settings), progress=False)
    assert told["shards"]["failed"] == {}
    return filter_shards(FilterConfig(**settings), progress=False)


def fill(data: Path, url: str, into: Path) -> str:
    """Put the tars alone into the store."""
    into.mkdir()
    for tar in data.glob("*.tar"):
        (into / tar.name).hardlink_to(tar)
    upload(into, url)
    return url


def test_s3_equals_local_byte_for_byte_in_spite_of_trouble(
    store: Store, here: Path, tiny_blip: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(storage, "BLOCK", 4096)  # several ranges a tar
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.05)
    url = fill(here, "s3://bucket/data", tmp_path / "tars")
    store.trouble, store.troubled = 0.15, 0
    try:
        summary = run(url, tiny_blip)
    finally:
        store.trouble = 0.0
    assert store.troubled > 10
    assert summary["texts"] == 2 * SHARDS * PICTURES and summary["shards"]["done"] == SHARDS
    assert files(url) == contents(here)
    assert any("bytes=4096-" in request for request in store.requests), "no range was asked for"

    # with everything done: listings, manifests, and of the shards one table of captions, to tell that it is one
    store.requests.clear()
    assert run(url, tiny_blip)["shards"] == {"done": 0, "skipped": SHARDS, "failed": {}}
    opened = [r for r in store.requests if r.startswith("GET") and (".parquet" in r or ".tar" in r)]
    assert opened == ["GET /bucket/data/captions/b/00000.parquet"]


def test_pictures_there_and_tables_here_and_the_other_way_round(
    store: Store, here: Path, tiny_blip: Path, tmp_path: Path
) -> None:
    url = fill(here, "s3://bucket/pictures", tmp_path / "tars")
    run(url, tiny_blip, out=str(tmp_path / "work"))
    run(str(here), tiny_blip, out="s3://bucket/work")
    tables = {name: data for name, data in contents(here).items() if name[0] in "csf" and name.endswith(".parquet")}
    for found in (contents(tmp_path / "work"), files("s3://bucket/work")):
        assert {name: data for name, data in found.items() if name.endswith(".parquet")} == tables
    assert {name.split("/")[0] for name in files("s3://bucket/pictures")} == {f"{n:05d}.tar" for n in range(SHARDS)}


@pytest.mark.slow
def test_processes_read_the_store_each_for_itself(store: Store, here: Path, tiny_blip: Path, tmp_path: Path) -> None:
    url = fill(here, "s3://bucket/processes", tmp_path / "tars")
    run(url, tiny_blip, workers=2)
    assert files(url) == contents(here)


def test_a_second_run_in_the_store_is_told_apart(store: Store, here: Path, tiny_blip: Path, tmp_path: Path) -> None:
    url = fill(here, "s3://bucket/twice", tmp_path / "tars")
    with (
        lock_folder(to_path(url) / "captions" / "b"),
        pytest.raises(Occupied, match="s3://bucket/twice/captions/b is being"),
    ):
        run(url, tiny_blip)
    assert run(url, tiny_blip)["shards"]["done"] == SHARDS
    assert not [name for name in files(url) if "lease" in name]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures in folders, with texts beside some of them, a list of them and a table that holds them."""
    folder = tmp_path / "photos"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    for number, name in enumerate(("b.jpg", "a b.jpg", "deep/c.jpg", "deep/.hidden/d.jpg")):
        (folder / name).write_bytes(picture(number))
    (folder / "a b.txt").write_text("a text")
    (folder / "broken.png").write_bytes(b"")
    return folder


def data_of(folder: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in folder.items() if name.endswith((".tar", ".parquet"))}


def test_pack_reads_and_writes_there(store: Store, photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "lists").mkdir()
    rows = [("a b.jpg", "one"), ("deep/c.jpg", "two"), ("../outside.jpg", "three"), ("none.jpg", "four")]
    pq.write_table(
        pa.table(dict(zip(("image", "caption"), zip(*rows, strict=True), strict=True))), tmp_path / "l.parquet"
    )
    (tmp_path / "l.parquet").rename(tmp_path / "lists" / "list.parquet")
    (tmp_path / "tables").mkdir()
    images = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    pq.write_table(pa.table({"jpg": [*images, None], "caption": ["x", "y", "z"]}), tmp_path / "tables" / "t.parquet")
    for name in ("photos", "lists", "tables"):
        upload(tmp_path / name, f"s3://bucket/{name}")

    def outcomes(source: str, out: str, **options: str) -> dict[str, int]:
        return pack(PackConfig(source, out, workers=1, **options), progress=False)["outcomes"]

    for kind, source, file in (
        ("folder", "photos", None),
        ("listed", "photos", "lists/list.parquet"),
        ("tables", "tables", None),
        ("tars", "packed/folder", None),  # what the first has made
    ):
        here, there = tmp_path / "packed" / kind, f"s3://bucket/packed/{kind}"
        local = {"annotations": str(tmp_path / file)} if file else {}
        remote = {"annotations": f"s3://bucket/{file}"} if file else {}
        told = outcomes(str(tmp_path / source), str(here), **local)
        assert outcomes(f"s3://bucket/{source}", there, **remote) == told and told["ok"] >= 2
        assert data_of(files(there)) == data_of(contents(here)), kind
    with pytest.raises(FileNotFoundError, match="Nothing at s3://bucket/nowhere"):
        outcomes("s3://bucket/nowhere", str(tmp_path / "out"))


def test_download_reads_and_writes_there(store: Store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "lists").mkdir()
    with Web() as web:
        rows = [f"{web.url}/{'missing' if number % 3 == 2 else 'good'}/{number}.jpg" for number in range(12)]
        (tmp_path / "lists" / "list.txt").write_text("\n".join(rows))
        upload(tmp_path / "lists", "s3://bucket/urls")
        settings = {"shard_size": 5, "workers": 1, "allow_private": True}
        download(DownloadConfig(str(tmp_path / "lists/list.txt"), str(tmp_path / "data"), **settings), progress=False)
        download(DownloadConfig("s3://bucket/urls/list.txt", "s3://bucket/downloaded", **settings), progress=False)
        assert files("s3://bucket/downloaded") == contents(tmp_path / "data")
        again = download(
            DownloadConfig("s3://bucket/urls/list.txt", "s3://bucket/downloaded", **settings), progress=False
        )
    assert again["shards"] == {"done": 0, "skipped": 3, "failed": {}}
    assert [name for name in contents(tmp_path / "cache") if not name.startswith("matplotlib")] == []


def test_report_export_and_pretrain_read_and_write_there(
    store: Store, here: Path, tiny_blip: Path, tmp_path: Path
) -> None:
    from blipcore.train.optim import TrainConfig
    from blipcore.train.runs import PretrainRun, pretrain

    upload(here, "s3://bucket/whole")
    filtered = "s3://bucket/whole/filtered/b"
    told = report(ReportConfig(filtered, out="s3://bucket/pages/report.html"))
    assert told["pictures_shown"] > 0 and len(files("s3://bucket/pages")["report.html"]) == told["bytes"]
    for form in ("webdataset", "parquet", "json"):
        export(ExportConfig(str(here / "filtered" / "b"), str(tmp_path / form), form), progress=False)
        export(ExportConfig(filtered, f"s3://bucket/exported/{form}", form), progress=False)
        away = {"manifest.json", "README.md"}  # these name the places
        local, remote = contents(tmp_path / form), files(f"s3://bucket/exported/{form}")
        assert {n: c for n, c in remote.items() if n not in away} == {n: c for n, c in local.items() if n not in away}
        assert away <= remote.keys()
    train = TrainConfig(steps=2, batch_size=4, dtype="fp32", device="cpu")
    for number, data in enumerate((filtered, "s3://bucket/whole")):
        run = PretrainRun(data=[data], init=str(tiny_blip), train=train)
        assert pretrain(run, tmp_path / f"run{number}")["steps"] == 2


def test_mistakes_in_the_store_are_sentences(store: Store, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="No folder at s3://bucket/none"):
        run("s3://bucket/none", Path("model"))
    with pytest.raises(FileNotFoundError, match="No folder at s3://no-such-bucket/data"):
        run("s3://no-such-bucket/data", Path("model"))
    with pytest.raises(FileNotFoundError) as caught:
        list(read_pictures("s3://bucket/none/00000.tar"))
    assert caught.value.filename == "s3://bucket/none/00000.tar"
    assert set(VARIABLES) <= set(os.environ)
