"""Tests of the local web server and its faults."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from capfilt.demo.server import CorpusServer

PICTURE = bytes(range(256)) * 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CorpusServer]:
    folder = tmp_path / "www"
    (folder / "000").mkdir(parents=True)
    for name in ("good", "slow", "private"):
        (folder / "000" / f"{name}.jpg").write_bytes(PICTURE)
    (tmp_path / "secret.txt").write_text("not for the web")
    rules = {"000/slow.jpg": {"delay": 0.3}, "000/private.jpg": {"headers": {"X-Robots-Tag": "noai"}}}
    (folder / "behaviour.json").write_text(json.dumps(rules))
    with CorpusServer(folder) as running:
        yield running


def get(server: CorpusServer, path: str) -> tuple[int, bytes, str | None]:
    try:
        with urllib.request.urlopen(f"{server.url}/{path}", timeout=10) as answer:
            return answer.status, answer.read(), answer.headers["X-Robots-Tag"]
    except urllib.error.HTTPError as error:
        return error.code, b"", None


def test_pictures_dead_links_and_opt_outs(server: CorpusServer) -> None:
    assert get(server, "000/good.jpg?size=1") == (200, PICTURE, None)
    assert get(server, "000/dead.jpg")[0] == 404
    assert get(server, "000/private.jpg") == (200, PICTURE, "noai")


def test_a_slow_picture_arrives_late_and_complete(server: CorpusServer) -> None:
    start = time.monotonic()
    assert get(server, "000/slow.jpg") == (200, PICTURE, None)
    assert time.monotonic() - start >= 0.3


def test_nothing_outside_the_folder_is_served(server: CorpusServer) -> None:
    for path in ("../secret.txt", "%2e%2e/secret.txt", "000/../../secret.txt", "/etc/hostname", "000", ""):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", f"/{path}")
        assert connection.getresponse().status == 404, path
        connection.close()


def test_connections_are_kept_and_head_has_no_body(server: CorpusServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", "/000/good.jpg")
    socket = connection.sock
    assert connection.getresponse().read() == PICTURE
    connection.request("HEAD", "/000/good.jpg")
    answer = connection.getresponse()
    assert answer.headers["Content-Length"] == str(len(PICTURE)) and answer.read() == b""
    assert connection.sock is socket
    connection.close()


def test_many_at_once(server: CorpusServer, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: get(server, "000/good.jpg"), range(500)))
    assert answers == [(200, PICTURE, None)] * 500
    assert capsys.readouterr().err == ""


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No folder at .*nowhere"):
        CorpusServer(tmp_path / "nowhere")
