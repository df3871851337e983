"""A real S3 server on loopback that can have bad moments: moto's, behind a gate that fails some of the requests."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Iterable
from typing import Any

VARIABLES = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class Store:
    """The server; `trouble` is the share of requests that end badly: turned away, or with half of an answer."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.trouble, self.troubled = 0.0, 0
        self.random, self.lock = random.Random(0), threading.Lock()
        self.requests: list[str] = []
        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self._gate, threaded=True)
        self.variables = {**VARIABLES, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server.port}"}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _gate(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        span = environ.get("HTTP_RANGE", "")
        with self.lock:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query} {span}".strip())
            bad = self.random.random() < self.trouble
            half = bad and environ["REQUEST_METHOD"] == "GET" and self.random.random() < 0.5
            self.troubled += bad
        if bad and not half:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
            return [BUSY]
        body = self.app(environ, start_response)
        if not half:
            return body
        whole = b"".join(body)
        return [whole[: len(whole) // 2]]  # the connection ends before the length that was promised


def upload(folder: os.PathLike[str], url: str) -> None:
    """Put the files of a folder into the store."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(path.split("/")[0], exist_ok=True)
    fs.put(f"{os.fspath(folder)}/", f"{path}/", recursive=True)


def files(url: str) -> dict[str, bytes]:
    """Name -> bytes of all that lies under a URL."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {name.removeprefix(f"{path}/"): fs.cat_file(name) for name in sorted(fs.find(path))}
