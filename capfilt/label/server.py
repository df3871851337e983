"""The HTTP server of the labelling view.

    GET /             the page, with the answers that are saved
    GET /picture/N    the picture of text N
    POST /answer      {"id": text, "answer": "1", "0", "unsure" or null}: saves the answer, then confirms it

Requests of other websites are refused: by the Host header (a website whose name resolves to this machine), by Origin
and Sec-Fetch-Site (a website that sends requests here), by the content type (a form). No path of a file is read from a
request.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from capfilt.label.label_file import ANSWERS, LabelFile, TextPlace
from capfilt.label.pictures import JpegReader
from capfilt.pictures.decode import DecodeError
from capfilt.report.label_texts import DrawnText

MAX_BODY = 4096


class LabelServer(ThreadingHTTPServer):
    """Serves a page for `texts`, and saves its answers in `labels`; `render` makes the page from the saved answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        address: tuple[str, int],
        texts: list[DrawnText],
        labels: LabelFile,
        pictures: JpegReader,
        render: Callable[[dict[str, str]], str],
    ) -> None:
        self.texts, self.labels, self.pictures, self.render = texts, labels, pictures, render
        self._drawn = {text.identifier: text for text in texts}
        self.places = {text.identifier: TextPlace(text.shard, text.key, text.source, text.index) for text in texts}
        self._saving = threading.Lock()
        self._ended = False
        # A Host header without a name cannot come from a website; others must name this server.
        self.names = {"localhost", address[0].lower()}
        self.is_local = _is_loopback(address[0])
        if not self.is_local:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def answers(self) -> dict[str, str]:
        """Return the saved answers by the identifiers of their texts."""
        answers = {identifier: self.labels.answer(place) for identifier, place in self.places.items()}
        return {identifier: answer for identifier, answer in answers.items() if answer is not None}

    def save(self, identifier: str, answer: str | None) -> None:
        """Save an answer. Raises OSError if the file cannot be written, or if the server has ended."""
        with self._saving:
            if self._ended:  # another process may hold the file now
                raise OSError("the server has ended")
            text = self._drawn[identifier]
            self.labels.set(self.places[identifier], answer, text.drawn, text.text)

    def server_close(self) -> None:
        with self._saving:
            self._ended = True
        super().server_close()

    def accepts_host(self, host: str | None) -> bool:
        """Return whether a Host header names this server; its port may be that of a tunnel."""
        try:
            name = urlsplit(f"//{host}").hostname if host else None
        except ValueError:
            return False
        if not name:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in self.names

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection early, as browsers do."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "capfilt", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered, so that headers and body leave in one packet
    timeout = 60  # seconds until an idle connection frees its thread
    server: LabelServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not self._is_allowed(is_page=path == "/"):
            return
        if path == "/":
            page = self.server.render(self.server.answers())
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode("utf-8"))
        elif path.startswith("/picture/"):
            self._send_picture(path.removeprefix("/picture/"))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        if urlsplit(self.path).path != "/answer":
            return self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        if self.headers.get_content_type() != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "An answer is sent as application/json.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self._refuse(HTTPStatus.LENGTH_REQUIRED, "An answer is sent with its length.")
        if len(length) > 9 or int(length) > MAX_BODY:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"An answer has at most {MAX_BODY} bytes.")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or not {"id", "answer"} <= content.keys():
            return self._refuse(HTTPStatus.BAD_REQUEST, "An answer is a JSON object with id and answer.")
        identifier, answer = content["id"], content["answer"]
        if answer is not None and answer not in ANSWERS:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"An answer is {', '.join(ANSWERS)} or null.")
        if not isinstance(identifier, str) or identifier not in self.server.places:
            return self._refuse(HTTPStatus.CONFLICT, "The server has other texts now; reload the page.")
        try:
            self.server.save(identifier, answer)
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            return self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"The labels file cannot be written ({reason}).")
        self._send(HTTPStatus.OK, "application/json", json.dumps({"labels": len(self.server.labels)}).encode())

    def _send_picture(self, number: str) -> None:
        texts = self.server.texts
        if not (number.isascii() and number.isdigit()) or len(number) > 9 or int(number) >= len(texts):
            return self._refuse(HTTPStatus.NOT_FOUND, "There is no such picture.")
        text = texts[int(number)]
        try:
            jpeg = self.server.pictures.read(text.shard, text.key)
        except DecodeError as error:
            return self._refuse(HTTPStatus.NOT_FOUND, error.reason)
        except FileNotFoundError as error:
            # A key that the tar lacks has no number of a system error.
            return self._refuse(HTTPStatus.NOT_FOUND, str(error) if error.errno is None else "its tar is missing")
        except OSError as error:
            return self._refuse(HTTPStatus.NOT_FOUND, f"its tar cannot be read ({error.strerror or error})")
        self._send(HTTPStatus.OK, "image/jpeg", jpeg)

    def _is_allowed(self, is_page: bool = False) -> bool:
        """Answer requests of other websites with an error, and return False for them.

        The page itself may be opened by a link of another website: that cannot read it.
        """
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if not self.server.accepts_host(host):
            self._refuse(HTTPStatus.FORBIDDEN, "This server has another name; open the address that it printed.")
        elif origin not in (None, f"http://{host}", f"https://{host}") or (
            site not in ("same-origin", "none") and not is_page
        ):
            self._refuse(HTTPStatus.FORBIDDEN, "Requests of other websites are refused.")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self.close_connection = True  # a body may be unread
        self._send(status, "text/plain; charset=utf-8", sentence.encode("utf-8"))

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a line per picture would hide the address of the page."""
