"""A real S3 server on loopback, moto's, that fails a share of the requests on demand."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Iterable
from typing import Any

VARIABLES = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class S3Server:
    """The server. It fails the share `failure_rate` of the requests, with an error or half of the response."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.failure_rate, self.failures = 0.0, 0
        self.random, self.lock = random.Random(0), threading.Lock()
        self.requests: list[str] = []
        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self._handle, threaded=True)
        self.variables = {**VARIABLES, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server.port}"}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handle(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        byte_range = environ.get("HTTP_RANGE", "")
        with self.lock:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query} {byte_range}".strip())
            fails = self.random.random() < self.failure_rate
            is_cut = fails and environ["REQUEST_METHOD"] == "GET" and self.random.random() < 0.5
            self.failures += fails
        if fails and not is_cut:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
            return [BUSY]
        body = self.app(environ, start_response)
        if not is_cut:
            return body
        content = b"".join(body)
        return [content[: len(content) // 2]]  # shorter than the announced Content-Length


def upload(folder: os.PathLike[str], url: str) -> None:
    """Copy the files of a folder to a URL."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(path.split("/")[0], exist_ok=True)
    fs.put(f"{os.fspath(folder)}/", f"{path}/", recursive=True)


def remote_contents(url: str) -> dict[str, bytes]:
    """Return name -> bytes of every file below a URL."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {name.removeprefix(f"{path}/"): fs.cat_file(name) for name in sorted(fs.find(path))}


def remove_contents(url: str) -> None:
    """Delete every file below a URL."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    fs.rm(path, recursive=True)
