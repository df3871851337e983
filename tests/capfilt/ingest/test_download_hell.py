"""Downloads from the worst servers, with kills at any moment: each ends, and every row has its outcome."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import contents, rows_of
from web import Web

import capfilt
from blipcore.io.samples import read_samples
from capfilt.engine.worker import Worker
from capfilt.errors import EngineError
from capfilt.ingest.download import download
from capfilt.ingest.download_config import DownloadConfig
from capfilt.ingest.lists import urls
from capfilt.ingest.rounds import fetch_urls, remove_results
from capfilt.ingest.shard_writer import ShardWriter
from capfilt.shards.shard_set import ShardSet

# For the fetching processes: 127.0.0.1 counts as public, other loopback addresses as private, and names in .test are
# resolved here. `rebind.test` is public on the first lookup and private on the next.
INTERNET = """
import socket
import capfilt.ingest.lists.urls

capfilt.ingest.lists.urls.is_public = lambda ip: ip == "127.0.0.1"
lookups, real = [], socket.getaddrinfo

def getaddrinfo(host, *args, **options):
    if host == "rebind.test":
        lookups.append(host)
        host = "127.0.0.2" if len(lookups) % 2 == 0 else "127.0.0.1"
    elif isinstance(host, str) and host.endswith(".test"):
        host = {"inside.test": "127.0.0.3", "both.test": "127.0.0.4"}[host]
    return real(host, *args, **options)

socket.getaddrinfo = getaddrinfo
"""

# path -> outcome of its row
HELL = {
    "/good/{}.jpg": "ok",
    "/mislabelled/{}.jpg": "ok",
    "/busy/{}.jpg": "ok",
    "/flaky/{}.jpg": "ok",
    "/missing/{}.jpg": "not_found",
    "/status/403.{}": "forbidden",
    "/status/500.{}": "server_error",
    "/robots/{}.jpg": "opted_out",
    "/noml/{}.jpg": "opted_out",
    "/reserved/{}.jpg": "opted_out",
    "/html/{}.jpg": "decode_error",
    "/video/{}.jpg": "decode_error",
    "/truncated/{}.jpg": "decode_error",
    "/endless/{}.jpg": "too_large",
    "/fat/{}.jpg": "too_large",
    "/reset/{}.jpg": "connection",
    "/short/{}.jpg": "connection",
    "/hang/{}.jpg": "timeout",
    "/dripbody/{}.jpg": "timeout",
    "/driphead/{}.jpg": "timeout",
    "/loop/{}.jpg": "other",
    "/chain/{}x": "other",
    "/tofile/{}.jpg": "other",
    "/elsewhere/{}.jpg": "bad_url",
    "/tohost/inside_test.{}": "bad_url",
    "/tohost/169_254_169_254.{}": "bad_url",
}


KILLS = 40  # in all; each run of the test makes eight


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


@pytest.fixture
def internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(INTERNET)
    root = Path(capfilt.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(root)]))
    monkeypatch.setattr(urls, "is_public", lambda ip: ip == "127.0.0.1")


def listing(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def download_from_hell(web: Web, folder: Path, times: int, shard_size: int) -> None:
    expected = {
        web.url + path.format(number): outcome for path, outcome in HELL.items() for number in range(1, times + 1)
    }
    good = len(HELL) * times
    expected |= {f"{web.url}/good/{number}.jpg": "ok" for number in range(1000, 1000 + good)}
    expected |= {f"http://127.0.0.1:9/dead/{number}.jpg": "connection" for number in range(good // 2)}  # a fifth
    expected |= {f"http://rebind.test:{web.server_port}/good/{number}.jpg": "" for number in range(2 * times)}
    expected |= {f"http://inside.test:{web.server_port}/good/1.jpg": "bad_url", "http://169.254.169.254/": "bad_url"}
    order = list(expected)
    random.Random(0).shuffle(order)
    config = DownloadConfig(
        listing(folder / "list.txt", order),
        str(folder / "data"),
        shard_size=shard_size,
        max_bytes=300_000,
        timeout=2.0,
        picture_seconds=3.0,
        stall_seconds=300,  # a busy machine must not count as a stalled server
        retry_wait=0.1,
        workers=2,
        threads=48,
    )
    summary = download(config, progress=False)
    rows = rows_of(folder / "data")
    assert [row["url"] for row in rows] == order
    wrong = {url: (row["status"], row["error"]) for url, row in zip(order, rows, strict=True)}
    wrong = {url: got for url, got in wrong.items() if expected[url] not in ("", got[0])}
    assert wrong == {}
    assert sum(summary["outcomes"].values()) == summary["rows"] == len(order)
    # The name is resolved once, so the connection goes to the address that was checked, or to none.
    assert {row["status"] for row in rows if "rebind.test" in row["url"]} <= {"ok", "bad_url"}
    shard_set = ShardSet.open(folder / "data")
    pictures = [sample for shard in shard_set.shards for sample in read_samples(shard_set.tar(shard))]
    assert len(pictures) == summary["ok"]


def test_every_row_on_the_worst_server_has_its_outcome(tmp_path: Path, web: Web, internet: None) -> None:
    """Without the limits per picture, the rows that hang or drip would never end."""
    download_from_hell(web, tmp_path, times=2, shard_size=100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_row_of_a_long_list_on_the_worst_server_has_its_outcome(tmp_path: Path, web: Web, internet: None) -> None:
    download_from_hell(web, tmp_path, times=15, shard_size=250)


def test_retry_failed_retries_temporary_failures_of_complete_shards(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        f"{web.url}/{'mending' if number % 3 == 1 else 'missing' if number % 3 == 2 else 'good'}/{number}.jpg"
        for number in range(30)
    ]
    data = tmp_path / "data"
    settings = {"urls": listing(tmp_path / "u.txt", rows), "out": str(data), "shard_size": 10, "retries": 0}
    settings |= {"allow_private": True, "workers": 1}
    first = download(DownloadConfig(**settings, duplicates="exact"), progress=False)
    assert first["outcomes"] == {"ok": 10, "not_found": 10, "server_error": 10}
    marks = sorted((data / "duplicates").glob("*.parquet"))
    for path in marks:
        path.unlink()
    before, pictures = rows_of(data), {sample.key: sample.image for sample in read_samples(data / "00000.tar")}

    web.mended.set()
    hits = Counter(web.hits)

    def killed(out: Path, staging: Path) -> None:
        os.replace(staging / "again" / "00000.tar", out / "00000.tar")
        raise KeyboardInterrupt

    # The new shards are written, and only one tar is moved.
    monkeypatch.setattr("capfilt.ingest.retry_failed.replace_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        download(DownloadConfig(**settings, retry_failed=True), progress=False)
    monkeypatch.undo()
    plain = download(DownloadConfig(**settings), progress=False)  # moves the new shards, and counts again
    assert plain["outcomes"] == {"ok": 20, "not_found": 10}
    assert len(marks) == 3 and all(path.exists() for path in marks)  # marked again, because the pictures have changed
    again = download(DownloadConfig(**settings, retry_failed=True), progress=False)

    assert again["outcomes"] == {"ok": 20, "not_found": 10}
    assert {path: count for path, count in (web.hits - hits).items() if "mending" not in path} == {}
    assert set((web.hits - hits).values()) == {1}
    after = rows_of(data)
    for old, new in zip(before, after, strict=True):
        assert new == old if old["status"] != "server_error" else new["status"] == "ok"
    found = [sample for shard in ("00000", "00001", "00002") for sample in read_samples(data / f"{shard}.tar")]
    assert [sample.key for sample in found] == [row["key"] for row in after if row["status"] == "ok"]
    assert pictures.items() <= {s.key: s.image for s in found}.items()
    assert json.loads((data / "manifest.json").read_text())["counts"] == {"ok": 20, "not_found": 10, "rows": 30}
    assert not (data / ".staging").exists()

    (data / "captions" / "c").mkdir(parents=True)
    (data / "captions" / "c" / "00000.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="was made from these shards"):
        download(DownloadConfig(**settings, retry_failed=True), progress=False)


def test_a_run_whose_first_rows_fail_stops_with_the_reason(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfilt.ingest.rounds.FIRST_ROUND_ROWS", 20)
    rows = [f"{web.url}/status/403.{number}" for number in range(15)] + [f"{web.url}/missing/{n}" for n in range(45)]
    config = DownloadConfig(
        listing(tmp_path / "u.txt", rows), str(tmp_path / "data"), shard_size=10, workers=1, allow_private=True
    )
    summary = download(config, progress=False)
    problem = (
        "only 0 of the first 20 rows could be fetched: 15 forbidden (HTTP Error 403: Forbidden); 5 not_found (HTTP"
    )
    assert summary["stopped"].startswith(problem)
    assert "--retry-failed" in summary["stopped"]
    assert summary["outcomes"] == {"not_found": 5, "forbidden": 15}
    assert web.hits.total() == 20
    assert [row["url"] for row in rows_of(tmp_path / "data")] == rows[:20]


@pytest.mark.slow
@pytest.mark.timeout(900)  # less than the timeout of the rows that hang
def test_the_time_per_shard_is_limited(tmp_path: Path, web: Web) -> None:
    rows = [f"{web.url}/{'hang' if number % 2 else 'good'}/{number}.jpg" for number in range(40)]
    summary = download(
        DownloadConfig(
            listing(tmp_path / "u.txt", rows),
            str(tmp_path / "data"),
            timeout=1000,
            picture_seconds=1000,
            shard_seconds=60,
            workers=1,
            allow_private=True,
        ),
        progress=False,
    )
    rows = rows_of(tmp_path / "data")
    assert {row["status"] for row in rows[1::2]} == {"timeout"}
    # Bodies that img2dataset has not yet written when it is killed are lost.
    assert {row["status"] for row in rows[::2]} <= {"ok", "timeout"}
    assert summary["outcomes"]["ok"] > 0 and sum(summary["outcomes"].values()) == 40
    assert rows[1]["error"] == "no answer, and not fetched within 60 s"


def test_removing_the_folder_ends_the_run(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{web.url}/good/{number}.jpg" for number in range(6)]
    data = tmp_path / "data"
    config = DownloadConfig(listing(tmp_path / "u.txt", rows), str(data), shard_size=3, workers=1, allow_private=True)
    write = ShardWriter.run

    def fetch_and_remove(*arguments: Any) -> Any:
        results = fetch_urls(*arguments)
        shutil.rmtree(data)
        return results

    def write_and_remove(self: ShardWriter, shard: str, worker: Worker) -> dict[str, int]:
        if shard == "00001":
            shutil.rmtree(data)
        return write(self, shard, worker)

    for name, function in (
        ("capfilt.ingest.rounds.fetch_urls", fetch_and_remove),
        ("capfilt.ingest.shard_writer.ShardWriter.run", write_and_remove),
    ):
        monkeypatch.setattr(name, function)
        with pytest.raises(EngineError, match=r"data(/.staging)? was removed while (download|write) was writing"):
            download(config, progress=False)
        monkeypatch.undo()
        assert contents(tmp_path).keys() == {"u.txt"}
    assert download(config, progress=False)["ok"] == 6


def test_results_are_removed_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fetched" / "a000").mkdir(parents=True)
    remove = shutil.rmtree

    def killed(folder: Path, **options: bool) -> None:
        if folder.exists():
            remove(folder / "a000")
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_results(tmp_path / "fetched")
    # If some attempts were left, the next attempt could get a number that is already in use.
    assert not (tmp_path / "fetched").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(KILLS // 8))
def test_kills_at_random_moments_do_not_change_the_result(tmp_path: Path, web: Web, seed: int) -> None:
    kinds = ["good"] * 5 + ["missing", "html"]
    rows = [f"{web.url}/{kinds[number % len(kinds)]}/{number}.jpg" for number in range(400)]
    settings = {"urls": listing(tmp_path / "u.txt", rows), "shard_size": 50, "workers": 2, "allow_private": True}
    settings |= {"timeout": 60, "picture_seconds": 300}  # a busy machine must not count as a stalled server
    start = time.monotonic()
    summary = download(DownloadConfig(out=str(tmp_path / "whole"), **settings), progress=False)
    usual, whole = time.monotonic() - start, contents(tmp_path / "whole")
    assert summary["outcomes"] == {"ok": 286, "not_found": 57, "decode_error": 57}
    script = tmp_path / "main.py"
    script.write_text(
        "import json, sys\nfrom capfilt.ingest.download import download\n"
        "from capfilt.ingest.download_config import DownloadConfig\n"
        "if __name__ == '__main__':\n    download(DownloadConfig(**json.loads(sys.argv[1])), progress=False)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1])}
    rng, kills, runs = random.Random(seed), 0, 0  # at most five kills per output folder
    while kills < 8:
        out, runs = tmp_path / f"killed{runs}", runs + 1
        command = [sys.executable, str(script), json.dumps({**settings, "out": str(out)})]
        for _ in range(5):
            process = subprocess.Popen(command, env=environment)
            try:
                assert process.wait(rng.uniform(0, 1.2 * usual)) == 0
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        download(DownloadConfig(out=str(out), **settings), progress=False)
        assert rows_of(out) == rows_of(tmp_path / "whole")
        assert contents(out) == whole
