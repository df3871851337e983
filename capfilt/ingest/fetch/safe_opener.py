"""The guard under every request of img2dataset, which fetches with urllib: an opener that keeps limits.

It refuses private addresses at every hop, bounds the size of a body and the time of a picture as a whole, leaves hosts
alone that ask for it, and takes no for an answer where rights are reserved.
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
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from capfilt.ingest.urls import is_private_host, is_public

READ_BYTES = 1 << 16
# What the guard says; `staging.classify` recognises these words in the outcomes.
PRIVATE, TOO_LARGE, TOO_SLOW = "private address", "larger than", "not complete after"
RESERVED, RETRY_AFTER = "tdm-reservation", "Retry-After:"


@dataclass(frozen=True)
class FetchLimits:
    """What a single picture may take."""

    max_bytes: int
    seconds: float  # wall clock from the request to the last byte, redirects included
    allow_private: bool


class RefusedError(ValueError):
    """The guard's no. Not an OSError, which urllib would wrap."""


class _Response(http.client.HTTPResponse):
    """A response that is read whole or not at all, within its limits."""

    def __init__(self, sock: socket.socket, *args: Any, limits: FetchLimits, deadline: float, **options: Any):
        super().__init__(sock, *args, **options)
        self.limits, self.deadline = limits, deadline
        with _OPEN_LOCK:
            _OPEN[sock] = deadline

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        most, whole = self.limits.max_bytes, self.length  # None where the server does not say
        if whole is not None and whole > most:
            raise RefusedError(f"{TOO_LARGE} {most} bytes: {whole}")
        chunks, size = [], 0
        try:
            while size != whole and time.monotonic() <= self.deadline and (chunk := self.read1(READ_BYTES)):
                size += len(chunk)
                chunks.append(chunk)
                if size > most:
                    raise RefusedError(f"{TOO_LARGE} {most} bytes")
        except (OSError, http.client.HTTPException):
            if time.monotonic() <= self.deadline:
                raise
        if time.monotonic() > self.deadline:  # what looks like a broken connection is one that was cut
            raise RefusedError(f"{TOO_SLOW} {self.limits.seconds:g} s: {size} bytes")
        if whole is not None and size < whole:  # read1 does not tell a broken connection from the end of the body
            raise http.client.IncompleteRead(b"".join(chunks), whole - size)
        return b"".join(chunks)


def _connect(
    address: tuple[str, int], timeout: float | None = None, source: Any = None, *, limits: FetchLimits, deadline: float
) -> socket.socket:
    """socket.create_connection that looks the host up once, checks what it gets, and connects to that."""
    host, port = address
    found = dict.fromkeys(entry[4][0] for entry in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
    if not limits.allow_private:
        for ip in found:
            if not is_public(ip):
                raise RefusedError(f"{PRIVATE}: {host} is {ip}")
    problem: OSError = OSError(f"no address for {host}")
    for ip in found:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RefusedError(f"{TOO_SLOW} {limits.seconds:g} s: no connection")
        try:
            return socket.create_connection((ip, port), min(left, timeout or left), source)
        except OSError as error:
            problem = error
    raise problem


_OPEN: weakref.WeakKeyDictionary[socket.socket, float] = weakref.WeakKeyDictionary()  # and until when
_OPEN_LOCK = threading.Lock()  # none may come while they are gone through


@functools.cache  # once a process
def _start_watchdog() -> None:
    def watch() -> None:
        while True:
            time.sleep(1.0)
            close_late_sockets()

    threading.Thread(target=watch, daemon=True).start()


def close_late_sockets() -> None:
    """End answers that are not complete in time: a server that drips a line never trips a socket's timeout."""
    with _OPEN_LOCK:
        late = [sock for sock, deadline in _OPEN.items() if time.monotonic() > deadline]
    for sock in late:
        with suppress(OSError):  # it has been closed
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS's own would have the reader go on in plain bytes


def _limited_connection(kind: type[http.client.HTTPConnection], limits: FetchLimits, deadline: float) -> Any:
    """A connection class for urllib that keeps the limits until `deadline`."""

    def make(host: str, **options: Any) -> http.client.HTTPConnection:
        connection = kind(host, **options)
        connection.response_class = functools.partial(_Response, limits=limits, deadline=deadline)
        connection._create_connection = functools.partial(_connect, limits=limits, deadline=deadline)
        return connection

    return make


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https under the limits; a redirect inherits the deadline of the request that it answers."""

    def __init__(self, limits: FetchLimits, rests: HostPauses):
        self.context = ssl.create_default_context()  # one for all: making one costs more than a request
        super().__init__(context=self.context)
        self.limits, self.rests = limits, rests

    def begin(self, request: urllib.request.Request) -> urllib.request.Request:
        if not hasattr(request, "deadline"):
            request.deadline = time.monotonic() + self.limits.seconds
        return self.do_request_(request)

    http_request = https_request = begin

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.send(http.client.HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.send(http.client.HTTPSConnection, request, context=self.context)

    def send(self, kind: type[http.client.HTTPConnection], request: urllib.request.Request, **options: Any) -> Any:
        limits = self.limits
        if request.has_proxy() or getattr(request, "_tunnel_host", None):
            # it is the proxy that looks names up and is connected to, and that is the user's own choice
            host = unquote(urlsplit(request.full_url).hostname or "")  # as urllib has it
            if not limits.allow_private and is_private_host(host):
                raise RefusedError(f"{PRIVATE}: {host}")
            limits = replace(limits, allow_private=True)
        self.rests.wait(_host_of(request), request.deadline)
        response, problem = None, None
        try:
            response = self.do_open(_limited_connection(kind, limits, request.deadline), request, **options)
        except (OSError, http.client.HTTPException) as error:
            problem = error
        if time.monotonic() > request.deadline:  # a head that was cut may look like a short one
            if response is not None:
                response.close()
            raise RefusedError(f"{TOO_SLOW} {limits.seconds:g} s: no answer")
        if problem is not None:
            raise problem
        if response.headers.get(RESERVED, "").strip() == "1":  # W3C's TDM Reservation Protocol
            response.close()
            raise RefusedError(f"{RESERVED}: 1")
        return response


def _host_of(request: urllib.request.Request) -> str:
    """The host that is asked; `request.host` is the proxy where there is one."""
    return urlsplit(request.full_url).netloc.lower()


class HostPauses:
    """Hosts that have said Retry-After, and until when: they are left alone for so long by all threads."""

    def __init__(self) -> None:
        self.until: dict[str, float] = {}

    def note(self, host: str, seconds: float) -> None:
        """Leave a host alone for so long."""
        self.until[host] = max(self.until.get(host, 0.0), time.monotonic() + seconds)

    def wait(self, host: str, deadline: float) -> None:
        """Sit out a host's rest; Refused when the picture's time ends before it."""
        until = self.until.get(host, 0.0)
        if until > deadline:
            raise RefusedError(
                f"HTTP Error 429: not asked, the host rests ({RETRY_AFTER} {until - time.monotonic():.0f})"
            )
        left = until - time.monotonic()
        if left > 0:  # not all of them at once
            time.sleep(min(left * random.uniform(1.0, 1.5), max(0.0, deadline - time.monotonic())))


class _Errors(urllib.request.HTTPDefaultErrorHandler):
    """Says in an error's message what the server said of Retry-After."""

    def __init__(self, rests: HostPauses):
        self.rests = rests

    def http_error_default(self, req: Any, fp: Any, code: int, msg: str, hdrs: Any) -> Any:
        seconds = parse_retry_after(hdrs.get("Retry-After")) if code in (429, 503) else None
        if seconds is not None:
            self.rests.note(_host_of(req), seconds)
            msg = f"{msg} ({RETRY_AFTER} {seconds:.0f})"
        raise urllib.error.HTTPError(req.full_url, code, msg, hdrs, fp)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    if value is None:
        return None
    with suppress(ValueError, OverflowError):
        return max(0.0, float(int(value)))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, *args: Any) -> Any:
        following = super().redirect_request(req, *args)
        if following is not None:
            following.deadline = req.deadline
        return following


def build_opener(limits: FetchLimits) -> urllib.request.OpenerDirector:
    """An opener for http and https alone (urllib's own would read `file:` and `ftp:` too), under the limits."""
    _start_watchdog()
    director, rests = urllib.request.OpenerDirector(), HostPauses()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Errors(rests),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Handler(limits, rests),
    ):
        director.add_handler(handler)
    return director
