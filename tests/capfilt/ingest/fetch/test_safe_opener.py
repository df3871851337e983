"""The limits of every request: private addresses, sizes and times, at every redirect."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from web import Web, picture

from capfilt.ingest.fetch import safe_opener
from capfilt.ingest.fetch.attempts import classify_failure
from capfilt.ingest.fetch.safe_opener import FetchLimits, HostPauses, RefusedError, build_opener, parse_retry_after


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def get(url: str, seconds: float = 30, private: bool = True, timeout: float = 5) -> bytes:
    with build_opener(FetchLimits(100_000, seconds, private)).open(url, timeout=timeout) as response:
        return response.read()


def test_bodies_are_complete_and_errors_are_those_of_urllib(web: Web) -> None:
    assert get(f"{web.url}/good/7.jpg") == picture(7)
    assert get(f"{web.url}/redirect/8.jpg") == picture(8)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{web.url}/missing")
    with pytest.raises(urllib.error.HTTPError, match="infinite loop"):
        get(f"{web.url}/loop")
    with pytest.raises(http.client.IncompleteRead):
        get(f"{web.url}/short")
    with pytest.raises(http.client.RemoteDisconnected):
        get(f"{web.url}/reset")
    with pytest.raises(TimeoutError, match="timed out"):
        get(f"{web.url}/hang", timeout=0.2)


def test_private_addresses_are_refused_before_a_request_is_made(web: Web) -> None:
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "[::ffff:127.0.0.1]"):
        with pytest.raises(RefusedError, match="private address"):
            get(f"http://{host}:{web.server_port}/private", private=False)
    assert web.hits["/private"] == 0


def test_a_redirect_to_a_private_address_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_opener, "is_public", lambda ip: ip != "127.0.0.2")
    assert get(f"{web.url}/redirect/9.jpg", private=False) == picture(9)
    with pytest.raises(RefusedError, match=r"private address: 127\.0\.0\.2 is"):
        get(f"{web.url}/elsewhere/9.jpg", private=False)


def test_the_connection_goes_to_the_address_that_was_checked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a name that is public for the check and private for the connection."""
    answers, real = iter(["127.0.0.1", "127.0.0.2"] * 2), socket.getaddrinfo
    lookups: list[str] = []

    def lookup(host: str, *args: Any, **options: Any) -> Any:
        lookups.append(host)
        return real(next(answers) if host == "rebind.test" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(safe_opener, "is_public", lambda ip: ip == "127.0.0.1")
    assert get(f"http://rebind.test:{web.server_port}/good/9.jpg", private=False) == picture(9)
    with pytest.raises(RefusedError, match=r"private address: rebind\.test is 127\.0\.0\.2"):
        get(f"http://rebind.test:{web.server_port}/good/9.jpg", private=False)
    assert lookups.count("rebind.test") == 2


def test_a_host_that_has_sent_retry_after_gets_no_request(web: Web) -> None:
    director = build_opener(FetchLimits(100_000, 5, True))
    with pytest.raises(urllib.error.HTTPError, match=r"503: Service Unavailable \(Retry-After: \d{9,}\)"):
        director.open(f"{web.url}/closed/1.jpg", timeout=5)
    with pytest.raises(RefusedError, match=r"429: not requested, the host is paused \(Retry-After: \d{9,}\)"):
        director.open(f"{web.url}/good/1.jpg", timeout=5)
    assert (web.hits["/closed/1.jpg"], web.hits["/good/1.jpg"]) == (1, 0)


class ManualClock:
    """A clock that moves only by sleeping."""

    def __init__(self) -> None:
        self.now, self.sleeps = 100.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_a_request_waits_for_the_pause_of_its_host(web: Web) -> None:
    clock = ManualClock()
    director = build_opener(FetchLimits(100_000, 5, True), clock, clock.sleep)
    with pytest.raises(urllib.error.HTTPError, match=r"429: Too Many Requests \(Retry-After: 1\)"):
        director.open(f"{web.url}/busy/2.jpg", timeout=5)
    assert director.open(f"{web.url}/busy/2.jpg", timeout=5).read() == picture(2)
    (seconds,) = clock.sleeps
    assert 1 <= seconds <= 1.5


def test_a_pause_is_never_shortened_and_ends_before_the_deadline() -> None:
    clock = ManualClock()
    pauses = HostPauses(clock, clock.sleep)
    pauses.add("a", 10)
    pauses.add("a", 5)
    pauses.wait("b", deadline=101)
    assert clock.sleeps == []
    pauses.wait("a", deadline=111)
    (seconds,) = clock.sleeps
    assert 10 <= seconds <= 11
    pauses.wait("a", deadline=200)
    assert clock.sleeps == [seconds]


class Proxy(BaseHTTPRequestHandler):
    """Answers for every host: /busy sends Retry-After, /inside redirects to a private address."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.send_response({"busy": 429, "inside": 302}.get(name, 200))
        self.send_header("Retry-After", "3600")
        self.send_header("Location", "http://169.254.169.254/latest")
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_behind_a_proxy_the_limits_apply_to_the_host_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        director = build_opener(FetchLimits(100_000, 5, False))
        with pytest.raises(urllib.error.HTTPError, match="429"):
            director.open("http://a.example/busy", timeout=5)
        with pytest.raises(RefusedError, match="the host is paused"):
            director.open("http://a.example/1.jpg", timeout=5)
        assert director.open("http://b.example/1.jpg", timeout=5).read() == b"http://b.example/1.jpg"
        for url in ("http://c.example/inside", "http://10.0.0.1/1.jpg", "http://%31%30.0.0.1/1.jpg"):
            with pytest.raises(RefusedError, match=r"private address: (169\.254\.169\.254|10\.0\.0\.1)"):
                director.open(url, timeout=5)
        server.shutdown()


def test_an_endless_or_invalid_retry_after_is_ignored() -> None:
    assert [parse_retry_after(value) for value in ("9" * 400, "soon", "-3", None)] == [None, None, 0.0, None]


def test_reserved_content_is_refused(web: Web) -> None:
    with pytest.raises(RefusedError, match="tdm-reservation: 1"):
        get(f"{web.url}/reserved/1.jpg")


def test_only_http_is_opened(web: Web, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for url in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "data:text/plain,x"):
        with pytest.raises(urllib.error.URLError, match="unknown url type"):
            get(url)
    with pytest.raises(urllib.error.HTTPError, match="not allowed"):
        get(f"{web.url}/tofile")


def test_the_size_of_a_body_is_bounded(web: Web) -> None:
    with pytest.raises(RefusedError, match="larger than 100000 bytes: 1000000000"):
        get(f"{web.url}/fat")
    with pytest.raises(RefusedError, match="larger than 100000 bytes"):
        get(f"{web.url}/endless")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "utf-8"])
def test_bodies_are_decoded_by_their_content_encoding(web: Web, encoding: str) -> None:
    assert get(f"{web.url}/encoded/{encoding}.jpg") == picture(5)


def test_a_body_that_is_too_large_when_decoded_is_refused(web: Web) -> None:
    with pytest.raises(RefusedError, match="larger than 100000 bytes without its content encoding, gzip") as caught:
        get(f"{web.url}/bomb/1.jpg")
    assert classify_failure(str(caught.value)) == "too_large"


def test_a_cookie_is_sent_along_the_redirects_of_one_url(web: Web) -> None:
    director = build_opener(FetchLimits(100_000, 30, True))
    for number in (1, 2):  # each URL gets its own cookie
        assert director.open(f"{web.url}/cookie/{number}.jpg", timeout=5).read() == picture(number)
        assert web.hits[f"/cookie/{number}.jpg"] == 2


def test_a_cookie_is_never_sent_to_another_host(web: Web) -> None:
    assert get(f"{web.url}/cookieaway/1.jpg") == b"none"


@pytest.mark.parametrize("path", ["dripbody", "dripchunk", "driphead"])
def test_a_server_that_sends_a_byte_at_a_time_is_cut_off(web: Web, path: str) -> None:
    """No socket times out here. Without a limit the request would only end with the server."""
    with pytest.raises(RefusedError, match=r"not complete after 0\.5 s"):
        get(f"{web.url}/{path}", seconds=0.5)


def test_sockets_past_their_deadline_are_shut_down() -> None:
    clock = ManualClock()
    late, other = socket.socketpair()
    with late, other:
        safe_opener._OPEN_SOCKETS[late] = safe_opener._RequestLimits(FetchLimits(1, 1, True), 101.0, clock)
        safe_opener.close_late_sockets()
        assert late.send(b"x") == 1
        clock.now = 102.0
        safe_opener.close_late_sockets()
        assert (other.recv(8), other.recv(8)) == (b"x", b"")
