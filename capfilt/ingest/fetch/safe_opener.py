"""A urllib opener with safety limits, which img2dataset uses for every request.

It refuses private addresses at every redirect, bounds the size of a body and the time per picture, waits as long as a
host asks for with `Retry-After`, and refuses content whose rights are reserved (`tdm-reservation`). Compressed bodies
are decoded. A cookie is sent only along the redirects of its URL, and only to the host that has set it.
"""

from __future__ import annotations

import functools
import http.client
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from capfilt.ingest.fetch.content_encoding import BodyTooLargeError, decode_body
from capfilt.ingest.lists.urls import PRIVATE, is_private_host, is_public

READ_BYTES = 1 << 16
# Like PRIVATE, parts of messages by which `attempts.classify_failure` finds the outcome.
TOO_LARGE, TOO_SLOW = "larger than", "not complete after"
RESERVED, RETRY_AFTER = "tdm-reservation", "Retry-After:"

Clock = Callable[[], float]


@dataclass(frozen=True)
class FetchLimits:
    """Limits of a single picture."""

    max_bytes: int
    seconds: float  # from the request to the last byte, including redirects
    allow_private: bool


class RefusedError(ValueError):
    """A request that is against the limits. Not an OSError, which urllib would wrap."""


@dataclass(frozen=True)
class _RequestLimits:
    """The limits of one request, with its deadline by `clock`."""

    limits: FetchLimits
    deadline: float
    clock: Clock

    def is_late(self) -> bool:
        return self.clock() > self.deadline

    def too_slow(self, detail: str) -> RefusedError:
        return RefusedError(f"{TOO_SLOW} {self.limits.seconds:g} s: {detail}")

    def too_large(self, detail: str = "") -> RefusedError:
        return RefusedError(f"{TOO_LARGE} {self.limits.max_bytes} bytes{detail}")


class _TimedRequest(urllib.request.Request):
    """A urllib request with what it shares with its redirects; used for casts only."""

    deadline: float
    cookies: dict[str, CookieJar]  # by host name


class _Response(http.client.HTTPResponse):
    """A response whose body is read as a whole, within the limits."""

    def __init__(self, sock: socket.socket, *args: Any, request: _RequestLimits, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.request = request
        with _OPEN_LOCK:
            _OPEN_SOCKETS[sock] = request

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        request, max_bytes = self.request, self.request.limits.max_bytes
        length = self.length  # None if the server does not send one
        if length is not None and length > max_bytes:
            raise request.too_large(f": {length}")
        chunks: list[bytes] = []
        size = 0
        try:
            while size != length and not request.is_late():
                chunk = self.read1(READ_BYTES)
                if not chunk:
                    break
                size += len(chunk)
                chunks.append(chunk)
                if size > max_bytes:
                    raise request.too_large()
        except (OSError, http.client.HTTPException):
            # After the deadline, the watchdog has closed the connection.
            if not request.is_late():
                raise
        if request.is_late():
            raise request.too_slow(f"{size} bytes")
        if length is not None and size < length:  # read1 returns b"" for a broken connection too
            raise http.client.IncompleteRead(b"".join(chunks), length - size)
        encoding = ",".join(self.headers.get_all("Content-Encoding", []))
        try:
            return decode_body(b"".join(chunks), encoding, max_bytes)
        except BodyTooLargeError as error:
            raise request.too_large(f" without its content encoding, {error}") from None


def _connect(
    address: tuple[str, int], timeout: float | None = None, source: Any = None, *, request: _RequestLimits
) -> socket.socket:
    """Connect like socket.create_connection, but resolve the host once and check each address before its use."""
    host, port = address
    infos = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
    if not request.limits.allow_private:
        for ip in addresses:
            if not is_public(ip):
                raise RefusedError(f"{PRIVATE}: {host} is {ip}")
    problem: OSError = OSError(f"no address for {host}")
    for ip in addresses:
        remaining = request.deadline - request.clock()
        if remaining <= 0:
            raise request.too_slow("no connection")
        try:
            return socket.create_connection((ip, port), min(remaining, timeout or remaining), source)
        except OSError as error:
            problem = error
    raise problem


# Open sockets, for the watchdog. The lock keeps threads from adding one while it iterates.
_OPEN_SOCKETS: weakref.WeakKeyDictionary[socket.socket, _RequestLimits] = weakref.WeakKeyDictionary()
_OPEN_LOCK = threading.Lock()


@functools.cache  # once per process
def _start_watchdog() -> None:
    def watch() -> None:
        while True:
            time.sleep(1.0)
            close_late_sockets()

    threading.Thread(target=watch, daemon=True).start()


def close_late_sockets() -> None:
    """Shut down connections past their deadline: a server that sends a byte at a time never trips a socket timeout."""
    with _OPEN_LOCK:
        late = [sock for sock, request in _OPEN_SOCKETS.items() if request.is_late()]
    for sock in late:
        with suppress(OSError):  # closed already
            # Not the method of SSLSocket, after which the reader would continue without TLS.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _connection_class(kind: type[http.client.HTTPConnection], request: _RequestLimits) -> Any:
    """Return a factory of connections within the limits; urllib calls it like a connection class."""

    def make_connection(host: str, **options: Any) -> http.client.HTTPConnection:
        connection: Any = kind(host, **options)
        connection.response_class = functools.partial(_Response, request=request)
        connection._create_connection = functools.partial(_connect, request=request)
        return connection

    return make_connection


class HostPauses:
    """Hosts that have sent Retry-After: no thread requests anything from them before that time."""

    def __init__(self, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self.clock, self.sleep = clock, sleep
        self.until: dict[str, float] = {}

    def add(self, host: str, seconds: float) -> None:
        """Pause a host, from now, for a number of seconds."""
        self.until[host] = max(self.until.get(host, 0.0), self.clock() + seconds)

    def wait(self, host: str, deadline: float) -> None:
        """Sleep until the pause of a host is over; RefusedError if it ends after `deadline`."""
        until = self.until.get(host, 0.0)
        remaining = until - self.clock()
        if until > deadline:
            raise RefusedError(f"HTTP Error 429: not requested, the host is paused ({RETRY_AFTER} {remaining:.0f})")
        if remaining > 0:  # a random part more, so that the threads do not all start at once
            self.sleep(min(remaining * random.uniform(1.0, 1.5), max(0.0, deadline - self.clock())))


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https within the limits. A redirect has the deadline of the first request."""

    def __init__(self, limits: FetchLimits, pauses: HostPauses, clock: Clock) -> None:
        # One for all requests, because creating one takes longer than a request.
        self.context = ssl.create_default_context()
        super().__init__(context=self.context)
        self.limits, self.pauses, self.clock = limits, pauses, clock

    def prepare(self, request: urllib.request.Request) -> urllib.request.Request:
        if not hasattr(request, "deadline"):
            timed = cast(_TimedRequest, request)
            timed.deadline, timed.cookies = self.clock() + self.limits.seconds, {}
        return self.do_request_(request)

    # urllib finds the methods of a handler by these names.
    http_request = https_request = prepare

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.send(http.client.HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.send(http.client.HTTPSConnection, request, context=self.context)

    def send(self, kind: type[http.client.HTTPConnection], request: urllib.request.Request, **options: Any) -> Any:
        limits = self.limits
        if request.has_proxy() or getattr(request, "_tunnel_host", None):
            # The proxy resolves the name, and the connection goes to the proxy, which the user has chosen.
            host = unquote(urlsplit(request.full_url).hostname or "")  # as urllib does
            if not limits.allow_private and is_private_host(host):
                raise RefusedError(f"{PRIVATE}: {host}")
            limits = replace(limits, allow_private=True)
        limited = _RequestLimits(limits, cast(_TimedRequest, request).deadline, self.clock)
        self.pauses.wait(_host_of(request), limited.deadline)
        try:
            response: Any = self.do_open(_connection_class(kind, limited), request, **options)
        except (OSError, http.client.HTTPException):
            if limited.is_late():
                raise limited.too_slow("no answer") from None
            raise
        if limited.is_late():  # headers that were cut off may look complete
            response.close()
            raise limited.too_slow("no answer")
        if response.headers.get(RESERVED, "").strip() == "1":  # W3C's TDM Reservation Protocol
            response.close()
            raise RefusedError(f"{RESERVED}: 1")
        return response


def _host_of(request: urllib.request.Request) -> str:
    """Return the host and port of the URL; `request.host` may be a proxy."""
    return urlsplit(request.full_url).netloc.lower()


class _Errors(urllib.request.HTTPDefaultErrorHandler):
    """Pauses hosts that send Retry-After, and adds its value to the error message."""

    def __init__(self, pauses: HostPauses) -> None:
        self.pauses = pauses

    def http_error_default(self, req: Any, fp: Any, code: int, msg: str, hdrs: Any) -> Any:
        seconds = parse_retry_after(hdrs.get("Retry-After")) if code in (429, 503) else None
        if seconds is not None:
            self.pauses.add(_host_of(req), seconds)
            msg = f"{msg} ({RETRY_AFTER} {seconds:.0f})"
        raise urllib.error.HTTPError(req.full_url, code, msg, hdrs, fp)


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date; None if it is missing or invalid."""
    if value is None:
        return None
    with suppress(ValueError, OverflowError):
        return max(0.0, float(int(value)))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and passes on the deadline and the cookies of the first request."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        redirected: Any = super().redirect_request(req, fp, code, msg, headers, newurl)
        if redirected is None:
            return None
        redirected.deadline, redirected.cookies = req.deadline, req.cookies
        if "Set-Cookie" in headers:
            req.cookies.setdefault(_host_name(req), CookieJar()).extract_cookies(fp, req)
        if jar := req.cookies.get(_host_name(redirected)):
            jar.add_cookie_header(redirected)
        return redirected


def _host_name(request: urllib.request.Request) -> str:
    return (urlsplit(request.full_url).hostname or "").lower()


def build_opener(
    limits: FetchLimits, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> urllib.request.OpenerDirector:
    """Return an opener that keeps the limits, for http and https only; urllib's own also opens `file:` and `ftp:`."""
    _start_watchdog()
    pauses = HostPauses(clock, sleep)
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Errors(pauses),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Handler(limits, pauses, clock),
    ):
        director.add_handler(handler)
    return director
