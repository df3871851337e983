"""The web of the embedded corpus: an HTTP server on localhost, with faults as on the real web.

    python -m capfilt.demo.server DEMO/corpus/www --port 8000

In: the `www` folder of a corpus. Out: its files over HTTP/1.1. A missing picture is a 404; a truncated one, or a page
of HTML in its place, is served as stored; `behaviour.json` lists the pictures with a delay or with extra headers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class CorpusServer(ThreadingHTTPServer):
    """A server of the files of a folder at `url`. As a context manager, it runs in a background thread."""

    request_queue_size = 1024  # downloaders open many connections at once
    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path | str, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"No folder at {folder}; give the www folder of a corpus.")
        rules = self.folder / "behaviour.json"
        self.behaviour = json.loads(rules.read_text(encoding="utf-8")) if rules.exists() else {}
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> CorpusServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), name="corpus server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection early, as downloaders do."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered, so that headers and body leave in one packet
    timeout = 30  # seconds until an idle connection frees its thread
    server: CorpusServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        path = (self.server.folder / name).resolve()
        if not path.is_relative_to(self.server.folder) or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        rule = self.server.behaviour.get(name, {})
        body = path.read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "image/jpeg" if path.suffix == ".jpg" else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        for header, value in rule.get("headers", {}).items():
            self.send_header(header, value)
        self.end_headers()
        if with_body and "delay" in rule:
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            time.sleep(rule["delay"])
            body = body[half:]
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a line per picture would hide the messages of the demo."""


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve the pictures of an embedded corpus on 127.0.0.1.")
    parser.add_argument("folder", type=Path, help="the www folder of the corpus")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        server = CorpusServer(options.folder, options.port)
    except OSError as error:  # the folder does not exist, or the port is in use
        sys.exit(f"Error: cannot serve {options.folder} on port {options.port}: {error}")
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"{options.folder} at {server.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
