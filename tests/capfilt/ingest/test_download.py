"""`capfilt download`: every row has its outcome, a killed run can be resumed, private addresses are refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import contents, rows_of
from web import Web, picture

import capfilt
from blipcore.io.samples import TarSample, read_samples
from capfilt.ingest.download import download
from capfilt.ingest.download_config import DownloadConfig
from capfilt.ingest.fetch.attempts import Attempts
from capfilt.ingest.open_set import manifest_settings
from capfilt.ingest.retry_failed import _make_retry_plan
from capfilt.ingest.shard_writer import OUTCOMES
from capfilt.pictures.decode import decode_picture
from capfilt.shards.format import IMAGES, write_shard
from capfilt.shards.manifest import read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def url_list(path: Path, urls: list[str | None], captions: list[str | None] | None = None) -> Path:
    captions = captions or [f"caption {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "TEXT": pa.array(captions, pa.string())}), path)
    return path


# path on the test server -> the outcome of its row, and a part of the message
FAULTS = {
    "/missing/1.jpg": ("not_found", "404"),
    "/status/410": ("not_found", "410"),
    "/status/403": ("forbidden", "403"),
    "/status/429": ("rate_limited", "429"),
    "/status/500": ("server_error", "500"),
    "/status/418": ("other", "418"),
    "/robots/1.jpg": ("opted_out", "X-Robots-Tag"),
    "/html/1.jpg": ("decode_error", "not_a_picture: HTML"),
    "/empty/1.jpg": ("decode_error", "empty"),
    "/truncated/1.jpg": ("decode_error", "truncated"),
    "/tiny/1.jpg": ("too_small", "4 x 4"),
    "/fat/1.jpg": ("too_large", "larger than 300000 bytes: 1000000000"),
    "/endless/1.jpg": ("too_large", "larger than 300000 bytes"),
    "/short/1.jpg": ("connection", "IncompleteRead"),
    "/reset/1.jpg": ("connection", "Remote end closed"),
    "/hang/1.jpg": ("timeout", "timed out"),
    "/dripbody/1.jpg": ("timeout", "not complete after 1.5 s"),
    "/driphead/1.jpg": ("timeout", "not complete after 1.5 s"),
    "/loop/1.jpg": ("other", "infinite loop"),
    "/tofile/1.jpg": ("other", "not allowed"),
}
ELSEWHERE = {
    "http://127.0.0.1:9/dead.jpg": ("connection", "refused"),
    "ftp://example.org/1.jpg": ("bad_url", "not an http"),
    "not a url": ("bad_url", "not an http"),
    None: ("bad_url", "no URL"),
}
FINE = [
    "/good/1.jpg",
    "/redirect/2.jpg",
    "/flaky/3.jpg",
    "/png/4.png",
    "/sideways/1.jpg",
    "/large/1.jpg",
    "/good/5.jpg?q=é x",
]


@pytest.fixture(scope="module")
def everything(web: Web, tmp_path_factory: pytest.TempPathFactory) -> tuple[DownloadConfig, dict, list[str | None]]:
    """Download a list with every fault that the test server has, in shards of 10."""
    folder = tmp_path_factory.mktemp("everything")
    paths = [*FINE, *FAULTS]
    order = [web.url + path for pair in zip(paths, reversed(paths), strict=True) for path in pair][: len(paths)]
    order += [web.url + path for path in paths if web.url + path not in order]
    urls = [*dict.fromkeys(order), *ELSEWHERE]
    captions = [None, "", *(f"caption {number}" for number in range(2, len(urls)))]
    config = DownloadConfig(
        str(url_list(folder / "list.parquet", urls, captions)),
        str(folder / "data"),
        shard_size=10,
        min_size=16,
        max_bytes=300_000,
        timeout=1.0,
        picture_seconds=1.5,
        stall_seconds=30,
        retry_wait=0.1,
        workers=2,
        allow_private=True,
    )
    return config, download(config, progress=False), urls


def test_every_row_has_its_outcome(everything, web: Web) -> None:
    config, summary, urls = everything
    rows = rows_of(Path(config.out))
    assert [row["url"] for row in rows] == urls
    assert [row["key"] for row in rows[:12]] == [f"{n:06d}" for n in range(12)]
    expected = {web.url + path: ("ok", "") for path in FINE}
    expected |= {web.url + path: outcome for path, outcome in FAULTS.items()} | ELSEWHERE
    got = {row["url"]: row for row in rows}
    assert {url: got[url]["status"] for url in urls} == {url: expected[url][0] for url in urls}
    for url, (_, words) in expected.items():
        assert words in (got[url]["error"] or ""), url
    assert sum(summary["outcomes"].values()) == summary["rows"] == len(urls)
    assert summary["ok"] == len(FINE)
    assert set(summary["outcomes"]) <= set(OUTCOMES)
    assert summary["shards"] == {"done": 4, "skipped": 0, "failed": {}}
    assert read_manifest(Path(config.out))["counts"] == {**summary["outcomes"], "rows": len(urls)}


def test_only_temporary_failures_are_retried(everything, web: Web) -> None:
    for path in ("/missing/1.jpg", "/status/403", "/robots/1.jpg", "/html/1.jpg", "/good/1.jpg"):
        assert web.hits[path] == 1, path
    for path in ("/flaky/3.jpg", "/status/429", "/status/500", "/hang/1.jpg"):
        assert web.hits[path] == 2, path
    assert all("capfilt" in agent for agent in web.agents)


def test_pictures_are_upright_and_texts_unchanged(everything, web: Web) -> None:
    config, _, _ = everything
    rows = {row["url"]: row for row in rows_of(Path(config.out))}
    found = ShardSet.open(config.out)
    problems: list = []
    tars = [sample for shard in found.shards for sample in read_samples(found.tar(shard), problems)]
    assert problems == []
    pictures = {sample.metadata["url"]: sample for sample in tars}
    assert [sample.key for sample in tars] == [row["key"] for row in rows_of(Path(config.out)) if row["status"] == "ok"]
    assert pictures[f"{web.url}/good/1.jpg"].image == picture(1)
    for url, sample in pictures.items():
        row, image = rows[url], decode_picture(sample.image)
        assert image.size == (row["width"], row["height"])
        assert len(sample.image) == row["bytes"]
        assert sample.text == row["caption"]
        assert image.getpixel((image.width // 2, 5))[0] > 200
        assert image.getpixel((3, image.height - 3))[1] > 200
    assert [row["caption"] for row in rows.values()][:3] == [None, "", "caption 2"]
    turned, large = rows[f"{web.url}/sideways/1.jpg"], rows[f"{web.url}/large/1.jpg"]
    assert [turned[name] for name in ("width", "height", "original_width", "original_height")] == [512, 384, 640, 480]
    assert [large[name] for name in ("width", "height", "original_width", "original_height")] == [512, 384, 1600, 1200]


def test_the_folder_holds_the_shards_the_manifest_and_a_record_of_the_input(everything) -> None:
    config, _, _ = everything
    assert pq.read_schema(Path(config.out) / "00000.parquet").remove_metadata() == IMAGES
    names = sorted(path.name for path in Path(config.out).iterdir() if not path.match(".input-*.npy"))
    assert names == sorted([f"0000{n}.{end}" for n in range(4) for end in ("tar", "parquet")] + ["manifest.json"])


def test_a_second_run_does_nothing_and_other_settings_are_refused(everything, web: Web, capsys, tmp_path: Path) -> None:
    config, summary, urls = everything
    before, hits = contents(Path(config.out)), web.hits.total()
    again = download(config)
    assert "all 4 shards are done already" in capsys.readouterr().err
    assert again["shards"] == {"done": 0, "skipped": 4, "failed": {}}
    assert (again["rows"], again["ok"], again["outcomes"]) == (summary["rows"], summary["ok"], summary["outcomes"])
    with pytest.raises(ValueError, match=r"other settings.*\n  image_size: 512 -> 256$"):
        download(DownloadConfig(**vars(config) | {"image_size": 256}), progress=False)
    other = url_list(tmp_path / "other.parquet", urls[:-1])
    with pytest.raises(ValueError, match=r"other.parquet is not what .* was made from: row 1 "):
        download(DownloadConfig(**vars(config) | {"urls": str(other)}), progress=False)
    assert (contents(Path(config.out)), web.hits.total()) == (before, hits)


def test_private_addresses_are_refused_by_default(tmp_path: Path, web: Web) -> None:
    urls = [f"{web.url}/good/1.jpg", f"http://localhost:{web.server_port}/good/1.jpg", "http://169.254.169.254/latest"]
    hits = web.hits.total()
    summary = download(DownloadConfig(str(url_list(tmp_path / "u.parquet", urls)), str(tmp_path / "d")), progress=False)
    assert summary["outcomes"] == {"bad_url": 3}
    assert all("private address" in row["error"] for row in read_table(tmp_path / "d" / "00000.parquet").to_pylist())
    assert list(read_samples(tmp_path / "d" / "00000.tar")) == []
    assert web.hits.total() == hits


def test_shards_of_another_program_are_left_alone(tmp_path: Path, web: Web) -> None:
    write_shard(tmp_path / "d" / "00000.tar", [TarSample("0", picture(0))])
    config = DownloadConfig(str(url_list(tmp_path / "u.parquet", [web.url])), str(tmp_path / "d"))
    with pytest.raises(ValueError, match="has not made"):
        download(config, progress=False)
    (tmp_path / "d" / "00000.tar").rename(
        tmp_path / "d" / "00000.parquet"
    )  # img2dataset has a format of Parquet files alone
    with pytest.raises(ValueError, match="has not made"):
        download(config, progress=False)


@pytest.mark.slow
def test_a_row_that_stalls_does_not_change_other_outcomes(tmp_path: Path, web: Web) -> None:
    urls = [f"{web.url}/good/{n}.jpg" for n in range(20)] + [f"{web.url}/missing/{n}.jpg" for n in range(20)]
    urls.insert(7, f"{web.url}/hang/stall.jpg")
    summary = download(
        DownloadConfig(
            str(url_list(tmp_path / "u.parquet", urls)),
            str(tmp_path / "d"),
            timeout=1000,
            picture_seconds=1000,
            stall_seconds=8,
            retries=0,
            workers=1,
            allow_private=True,
        ),
        progress=False,
    )
    assert summary["outcomes"] == {"ok": 20, "not_found": 20, "timeout": 1}
    row = read_table(tmp_path / "d" / "00000.parquet").to_pylist()[7]
    assert row["error"] == "no answer, and no progress for 8 s"


def test_a_killed_download_can_be_resumed_to_the_same_bytes(tmp_path: Path, web: Web) -> None:
    urls = [f"{web.url}/{'missing' if n % 7 == 3 else 'good'}/{n}.jpg" for n in range(200)]
    source = url_list(tmp_path / "u.parquet", urls)
    settings = {"urls": str(source), "shard_size": 20, "workers": 2, "allow_private": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    download(DownloadConfig(out=str(whole), **settings), progress=False)
    script = tmp_path / "main.py"
    script.write_text(
        "import json, sys\nfrom capfilt.ingest.download import download\n"
        "from capfilt.ingest.download_config import DownloadConfig\n"
        "if __name__ == '__main__':\n    download(DownloadConfig(**json.loads(sys.argv[1])), progress=False)\n"
    )
    command = [sys.executable, str(script), json.dumps({**settings, "out": str(killed)})]
    environment = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1])}

    def kill_when(ready: Callable[[], bool]) -> None:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()

    kill_when(lambda: any(killed.glob(".staging/fetched/a*/out/*.tar")))
    assert not list(killed.glob("*.parquet"))
    kill_when(lambda: any(killed.glob("*.parquet")))
    assert 0 < len(list(killed.glob("*.parquet"))) < 10
    hits = web.hits["/good/0.jpg"]
    summary = download(DownloadConfig(out=str(killed), **settings), progress=False)
    assert summary["shards"]["skipped"] > 0
    assert web.hits["/good/0.jpg"] == hits  # bodies fetched before the kill are reused
    assert contents(killed) == contents(whole)


def test_an_img2dataset_that_cannot_start_is_an_error(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "img2dataset.py").write_text("raise RuntimeError('broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = url_list(tmp_path / "u.parquet", [f"{web.url}/good/1.jpg"])
    with pytest.raises(RuntimeError, match="img2dataset ended early: RuntimeError: broken installation"):
        download(DownloadConfig(str(source), str(tmp_path / "d"), retries=0, allow_private=True), progress=False)
    assert not list((tmp_path / "d").glob("*.parquet"))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        DownloadConfig("u", "o", shard_size=0)
    with pytest.raises(ValueError, match="min_success is a share"):
        DownloadConfig("u", "o", min_success=2)


def test_retrying_names_a_tar_that_lacks_a_picture(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.tar", [])
    table = pa.Table.from_pylist([{"key": "000000", "status": "ok"}], schema=IMAGES)
    with pytest.raises(ValueError, match=r"00000\.tar is damaged; remove it and its table"):
        _make_retry_plan(tmp_path, table, "00000", {}, {}, DownloadConfig("u", str(tmp_path)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_download_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def run_attempt(self: Attempts, rows: list[tuple[int, str]], *_: object, **__: object) -> str:
        attempt = self.folder / "a000"
        (attempt / "out").mkdir(parents=True)
        (attempt / "log.txt").write_text(f"shard 0 failed with error [Errno {number}] {os.strerror(number)}\n")
        return "done"

    monkeypatch.setattr(Attempts, "run_attempt", run_attempt)
    urls = url_list(tmp_path / "u.parquet", ["http://192.0.2.1/1.jpg"])
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        download(DownloadConfig(str(urls), str(tmp_path / "data"), allow_private=True), progress=False)
    assert caught.value.filename == str(tmp_path / "data" / ".staging" / "fetched")
    assert not list((tmp_path / "data").glob("*.parquet"))


def test_several_columns_of_texts_bad_rows_and_the_account(web: Web, tmp_path: Path) -> None:
    """The first text is the web text, the others are captions; a row that is no text costs only itself."""
    lines = [
        "url,re_caption,org_caption",
        f"{web.url}/good/9021.jpg,a wall,IMG 1",
        f"{web.url}/good/9022.jpg,caf\xe9,x",
    ]
    (tmp_path / "list.csv").write_bytes("\n".join(lines).encode("latin-1"))
    config = DownloadConfig(str(tmp_path / "list.csv"), str(tmp_path / "data"), workers=1, allow_private=True)
    with pytest.raises(ValueError, match="'re_caption', 'org_caption' may hold texts"):
        download(config, progress=False)
    assert web.hits["/good/9021.jpg"] == 0 and not (tmp_path / "data").exists()
    config.caption_col = ["re_caption", "org_caption"]
    summary = download(config, progress=False)
    assert [(row["caption"], row["status"]) for row in rows_of(tmp_path / "data")] == [
        ("a wall", "ok"),
        (None, "bad_row"),
    ]
    assert "list.csv, line 3" in rows_of(tmp_path / "data")[1]["error"]
    assert read_table(tmp_path / "data/captions/more/00000.parquet")["text"].to_pylist() == ["IMG 1"]
    assert web.hits["/good/9021.jpg"] == 1 and web.hits["/good/9022.jpg"] == 0
    assert summary["outcomes"] == {"ok": 1, "bad_row": 1}
    assert summary["account"]["texts"] == {"re_caption": 1, "org_caption": 1}
    assert read_manifest(tmp_path / "data")["account"] == summary["account"]
    assert download(config, progress=False)["account"] == summary["account"]


def test_settings_are_recorded_as_by_earlier_versions() -> None:
    config = DownloadConfig("list.csv", "data", caption_col=["alt"])
    settings = manifest_settings(config)
    assert {"keep_columns", "no_header", "columns", "quoting", "encoding"}.isdisjoint(settings)
    assert settings["caption_col"] == "alt" and manifest_settings(DownloadConfig("a", "b"))["caption_col"] is None
    two = manifest_settings(DownloadConfig("list.csv", "data", caption_col=["alt", "title"], quoting="none"))
    assert two["caption_col"] == ["alt", "title"] and two["quoting"] == "none"
