"""A local server with OpenAI's chat API, which fails on request."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

MODEL, KEY = "tiny-vlm", "sk-secret-of-the-tests"
WORDS = ["a", "red", "green", "blue", "round", "square", "dog", "cat", "tree", "on", "the", "left"]


class VlmServer:
    """The server. `trouble(request)` returns None for a caption, or the name of another response (see `_TROUBLES`)."""

    def __init__(self, model: str = MODEL) -> None:
        self.model = model
        self.trouble: Callable[[dict[str, Any]], str | None] = lambda request: None
        # Returns the text of an answer, or None for words drawn by picture and seed.
        self.reply: Callable[[dict[str, Any]], str | None] = lambda request: None
        # alternatives at each place of an answer: token -> log-probability
        self.tops: Callable[[dict[str, Any]], list[dict[str, float]]] = lambda request: []
        self.usage: dict[str, Any] | None = None  # tokens of every answer
        self.keeps_requests = True
        self.requests: list[dict[str, Any]] = []  # in order, with their picture as `image`
        self.responses: Counter[str] = Counter()  # by kind
        self.active = self.max_active = 0  # requests without a response
        self.seconds = 0.0  # per response
        self.refuses_logprobs = False
        self.redirect: str | None = None  # the address that every response names
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        content = request["messages"][-1]["content"]
        request["prompt"] = content[-1]["text"]
        if content[0]["type"] == "image_url":
            data = base64.b64decode(content[0]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
            request["image"] = Image.open(io.BytesIO(data)).convert("RGB")
        request["reply"], request["usage"] = self.reply(request), self.usage
        request["tops"] = self.tops(request) if request.get("top_logprobs") else []
        with self.lock:
            self.active += 1
            self.max_active = max(self.max_active, self.active)
            if self.keeps_requests:
                self.requests.append(request)
        try:
            time.sleep(self.seconds)
            trouble = self.trouble(request)
            if handler.headers.get("Authorization") != f"Bearer {KEY}":
                trouble = "key"
            elif request["model"] != self.model:
                trouble = "model"
            if trouble == "hang":
                time.sleep(3)
            if trouble in _STREAMS:
                with self.lock:
                    self.responses[trouble] += 1
                return _STREAMS[trouble](handler)
            if self.refuses_logprobs and request.get("logprobs"):
                trouble = "no logprobs"
            if self.redirect is not None:
                trouble = "redirect"
                _TROUBLES[trouble] = (307, {"Location": self.redirect}, b"")
            status, headers, body = (
                _TROUBLES[trouble] if trouble in _TROUBLES else (200, {}, _completion(request, trouble))
            )
            with self.lock:
                self.responses[trouble or "caption"] += 1
            handler.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up
        finally:
            with self.lock:
                self.active -= 1


def _completion(request: dict[str, Any], trouble: str | None) -> bytes:
    """Return a chat completion that is a function of picture and seed."""
    if trouble in _MESSAGES:
        content: dict[str, Any] = {"message": {"role": "assistant", **_MESSAGES[trouble]}, "finish_reason": "stop"}
        return json.dumps({"model": MODEL, "choices": [content]}).encode()
    asked = request["image"].tobytes() if "image" in request else request["prompt"].encode()
    digest = hashlib.sha256(asked + str(request.get("seed")).encode()).digest()
    reply = request["reply"] or " ".join(WORDS[n % len(WORDS)] for n in digest[:5])
    message: dict[str, Any] = {"role": "assistant", "content": reply}
    finish, logprobs = "stop", None
    if trouble == "refusal":
        message = {"role": "assistant", "content": None, "refusal": "I do not describe this."}
    elif trouble == "sorry":
        message["content"] = "I'm sorry, but I can't help with that picture."
    elif trouble == "filtered":
        message["content"], finish = "", "content_filter"
    elif trouble == "long":
        message["content"], finish = "and so on " * 16, "length"
    elif trouble == "empty":
        message["content"] = " \n"
    if request.get("logprobs"):
        logprobs = {"content": [{"token": word, "logprob": -0.5} for word in (message["content"] or "").split()]}
    if request["tops"] and logprobs:
        logprobs["content"] = [
            {"token": max(top, key=lambda token: top[token]), "logprob": max(top.values())}
            | {"top_logprobs": [{"token": token, "logprob": value} for token, value in top.items()]}
            for top in request["tops"]
        ]
    if trouble in _LOGPROBS:
        logprobs = _LOGPROBS[trouble]
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    model = "gpt-2" if trouble == "other model" else MODEL
    return json.dumps(
        {"id": "x", "object": "chat.completion", "model": model, "choices": [choice]} | {"usage": request["usage"]}
    ).encode()


def _error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()


def _send_without_end(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def _send_drops(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.05)


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


_STREAMS = {"endless": _send_without_end, "drops": _send_drops, "hang up": _hang_up}
# Messages and log-probabilities that no honest server sends.
_MESSAGES: dict[str | None, dict[str, Any]] = {
    "surrogate": {"content": "a dog \ud83d"},
    "nul": {"content": "a dog\x00"},
    "escape": {"content": "\x1b[2Ja dog"},
    "list": {"content": [{"type": "text", "text": "a dog"}]},
    "number": {"content": 5},
    "null": {"content": None},
    "endless text": {"content": "dog " * 20000},
    "refusal list": {"content": "a dog", "refusal": ["no"]},
    "surrogate refusal": {"content": None, "refusal": "\ud83d"},
}
_LOGPROBS: dict[str | None, Any] = {
    "nan": {"content": [{"token": "a", "logprob": float("nan")}]},
    "positive": {"content": [{"token": "a", "logprob": 3.0}]},
    "infinite": {"content": [{"token": "a", "logprob": -1e400}]},
    "words": {"content": [{"token": "a", "logprob": "-0.5"}]},
    "nothing": {"content": [None]},
    "a list": [-0.5],
}


_TROUBLES: dict[str | None, tuple[int, dict[str, str], bytes]] = {
    "busy": (429, {"Retry-After": "0.2"}, _error("slow down")),
    "broken": (500, {}, _error("out of memory")),
    "rejected": (400, {}, _error("this picture is too small")),
    "policy": (400, {}, _error("not allowed", "content_policy_violation")),
    "malformed": (200, {}, b"<html>the proxy says hello</html>"),
    "no choice": (200, {}, b'{"choices": []}'),
    "no logprobs": (400, {}, _error("unknown field logprobs")),
    "surrogate error": (400, {}, b'{"error": {"message": "half \\ud83d of it"}}'),
    "html": (200, {"Content-Type": "text/html"}, b"<html>\xff\xfe the proxy</html>"),
    "nothing at all": (200, {}, b""),
    "a number": (200, {}, b"17"),
    "brackets": (200, {}, b"[" * 100_000),
    "digits": (200, {}, b'{"choices": ' + b"1" * 5000 + b"}"),
    "choices text": (200, {}, b'{"choices": "a dog"}'),
    "choice null": (200, {}, b'{"choices": [null]}'),
    "bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(200 << 20), 1)),
    "two bombs": (200, {"Content-Encoding": "gzip, gzip"}, gzip.compress(gzip.compress(bytes(50 << 20), 1))),
    "no gzip": (200, {"Content-Encoding": "gzip"}, b'{"choices": []}'),
    "huge header": (200, {"X-Much": "x" * 200_000}, b"{}"),
    "huge error": (400, {}, b"x" * (8 << 20)),
    "key": (401, {}, _error(f"Incorrect API key provided: {KEY}x")),
    "model": (404, {}, _error("there is no such model", "model_not_found")),
}
