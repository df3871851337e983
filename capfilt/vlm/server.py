"""A server with OpenAI's chat API, such as vLLM, SGLang and llama.cpp: the model of `openai:` captioners and judges.

Requests run concurrently in a thread of their own, `concurrency` at a time. Answers are cached by key: none is paid for
twice, even after a kill or in another data set. The client retries temporary failures and respects `Retry-After`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from capfilt.errors import EngineError
from capfilt.vlm.answer import (
    MAX_BODY,
    MAX_BODY_PER_TOKEN,
    Answer,
    UnusableAnswerError,
    clean_message,
    parse_completion,
)
from capfilt.vlm.answer_cache import AnswerCache, default_cache_path
from capfilt.vlm.connection import bounded_client, check_server_url, without_query

JPEG_QUALITY = 95
# Outcomes of a test request that every other request would have too.
FAULTS = ("rejected", "malformed", "too_large", "timeout", "failed")


@dataclass
class ServerConfig:
    """The server of an `openai:` model, with the key in OPENAI_API_KEY; no answer depends on these settings."""

    # such as http://localhost:8000/v1; default: OPENAI_BASE_URL, otherwise OpenAI's own server
    base_url: str | None = None
    # simultaneous requests per worker, for the pictures of at most three batches
    concurrency: int = 64
    # seconds for a whole answer
    timeout: float = 120.0
    # per request, with growing pauses
    retries: int = 8
    # SQLite file of the answers; default: ~/.cache/capfilt/answers.sqlite
    cache: str | None = None
    # dollars per million tokens of requests and of answers; with them, the progress shows the cost
    input_price: float = 0.0
    output_price: float = 0.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise ValueError("server.concurrency must be at least 1, retries at least 0 and timeout above 0 seconds.")
        if not (0 <= self.input_price < float("inf") and 0 <= self.output_price < float("inf")):
            raise ValueError("server.input_price and output_price must be dollars per million tokens, at least 0.")
        if self.base_url:
            check_server_url(self.base_url, "--base-url")


@dataclass(frozen=True)
class ChatRequest:
    """A question to the model, perhaps about a picture."""

    prompt: str
    # of a picture, see `encode_jpeg`
    jpeg: bytes | None = None
    system: str = ""
    max_new_tokens: int = 64
    # likeliest tokens to report at every position of the answer; 0: only the answer's own
    top_logprobs: int = 0
    # further fields of the request; null removes one
    fields: dict[str, Any] = field(default_factory=dict)


class ChatServer:
    """The model `model` of a server. Errors name the server and never the key."""

    def __init__(self, model: str, server: ServerConfig, max_tokens: int) -> None:
        """Connect; send nothing. Answers have at most `max_tokens` tokens, alternatives included."""
        self.model, self.server = model, server
        # dollars of this run's answers
        self.spent = 0.0
        self._openai = _import_openai()
        url = server.base_url or os.environ.get("OPENAI_BASE_URL")
        self._api_key = os.environ.get("OPENAI_API_KEY", "")
        if url:
            check_server_url(url, "OPENAI_BASE_URL")
        if not url and not self._api_key:
            raise ValueError("OpenAI's server needs a key in OPENAI_API_KEY; name another server with --base-url.")
        self.url = without_query(url or "https://api.openai.com/v1")
        # OpenAI has renamed the field; other servers may not support the new name
        self._length_field = "max_tokens" if url else "max_completion_tokens"
        self._cache = AnswerCache(Path(server.cache).expanduser() if server.cache else default_cache_path())
        # whether the server takes a request for log-probabilities; None until it has answered one
        self._logprobs: bool | None = None
        self._client = self._openai.AsyncOpenAI(
            api_key=self._api_key or "none",
            base_url=url,
            timeout=server.timeout,
            max_retries=min(2, server.retries),
            http_client=bounded_client(self._openai, server.timeout, MAX_BODY + MAX_BODY_PER_TOKEN * max_tokens),
        )
        self._slots = asyncio.Semaphore(server.concurrency)
        self._requests: dict[str, asyncio.Task[Answer | str]] = {}  # unanswered, by cache key
        # ended the run; raised by all requests that wait for a slot
        self._fatal_error: EngineError | None = None
        self._last_answer = 0.0  # in seconds of the loop's clock
        self._other_model = ""  # that the server has named in an answer
        self._reports_usage = True
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()

    def check(self, content: Any, request: ChatRequest) -> Answer | str:
        """Return the answer to a test request, to find a wrong key, model or setting early; see `ask`.

        Raises ValueError for a fault that every other request would have too.
        """
        try:
            answer = self.start(self.ask(content, request)).result()
        except EngineError as error:
            raise ValueError(str(error)) from None
        if isinstance(answer, str) and answer.startswith(FAULTS):
            raise ValueError(f"The server at {self.url} does not accept the request ({answer}).")
        self._client = self._client.with_options(max_retries=self.server.retries)
        return answer

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the thread of the requests; return its future result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def ask(self, content: Any, request: ChatRequest) -> Answer | str:
        """Return the answer to a request, or its error: `reason: details`. Equal requests are sent once at a time.

        The JSON `content` is the key of the cache: whatever the answer depends on. Raises EngineError for a problem
        that other requests have too.
        """
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        if key not in self._requests:
            self._requests[key] = asyncio.ensure_future(self._ask_once(key, request))
        try:
            return await self._requests[key]
        finally:
            self._requests.pop(key, None)

    async def _ask_once(self, key: str, request: ChatRequest) -> Answer | str:
        """Return an answer from the cache, otherwise from the server; an unusable cached answer is requested again."""
        cached = self._cached_answer(key)
        # A server without log-probabilities may have been replaced.
        if cached is not None and (cached.tops or not cached.text or not request.top_logprobs):
            return cached
        async with self._slots:
            if self._fatal_error:
                raise self._fatal_error
            response = await self._send(request)
        if isinstance(response, str):
            return response
        self._last_answer = self._loop.time()
        problem = response.http_response.extensions.get("problem")
        if problem:
            return str(problem)
        try:
            completion = parse_completion(response.content)
        except UnusableAnswerError as error:
            return f"malformed: {self._redact(str(error))}"
        self._note_model(completion.model)
        self._add_cost(completion.usage)
        self._cache.put(key, completion.answer.to_dict())
        return completion.answer

    def _cached_answer(self, key: str) -> Answer | None:
        try:
            return Answer.from_dict(self._cache.get(key))
        except UnusableAnswerError:
            return None

    async def _send(self, request: ChatRequest) -> Any:
        """Return the server's response, or the request's error; EngineError for one that concerns all requests."""
        start = self._loop.time()
        asks_logprobs = self._logprobs is not False
        try:
            response = await self._create(request, asks_logprobs)
            if asks_logprobs:
                self._logprobs = True
            return response
        except self._openai.APIError as error:
            refusal = error
        is_rejected = getattr(refusal, "status_code", None) in (400, 422, 501) and not _is_refusal(refusal)
        if self._logprobs is None and is_rejected:
            # the server may have no log-probabilities
            try:
                response = await self._create(request, False)
                if self._logprobs is None:
                    self._logprobs = False
                return response
            except self._openai.APIError as error:
                refusal = error
        # An answer to another request in the second half of the retries shows that the server is alive.
        is_alive = self._last_answer > (start + self._loop.time()) / 2
        if not is_alive and not isinstance(refusal, self._openai.APIStatusError | self._openai.APITimeoutError):
            is_alive = await self._answers_at_all()
        return self._handle_error(refusal, is_alive)

    async def _answers_at_all(self) -> bool:
        """Return whether the server answers a request that costs nothing, with any status."""
        try:
            await self._client.with_options(max_retries=0).models.with_raw_response.list()
        except self._openai.APIError as error:
            return isinstance(error, self._openai.APIStatusError)
        return True

    async def _create(self, request: ChatRequest, asks_logprobs: bool) -> Any:
        arguments = self._arguments(request, asks_logprobs)
        return await self._client.chat.completions.with_raw_response.create(**arguments)

    def _note_model(self, model: str) -> None:
        """Say once that another model than the requested one has answered; a server may know it by another name."""
        name = self.model.rpartition("/")[2].lower()
        if model and name not in model.lower() and not self._other_model:
            self._other_model = model
            print(f"The server at {self.url} answers as model '{model}', not '{self.model}'.", file=sys.stderr)

    def _add_cost(self, usage: tuple[int, int] | None) -> None:
        """Add the price of an answer; say once that the server does not report its tokens."""
        prices = (self.server.input_price, self.server.output_price)
        if usage is not None:
            self.spent += sum(price * tokens for price, tokens in zip(prices, usage, strict=True)) / 1e6
        elif any(prices) and self._reports_usage:
            self._reports_usage = False
            print(f"The server at {self.url} reports no usage, so the cost is not complete.", file=sys.stderr)

    def _arguments(self, request: ChatRequest, asks_logprobs: bool) -> dict[str, Any]:
        """Return the arguments of the client for a request."""
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
        if request.jpeg is not None:
            url = f"data:image/jpeg;base64,{base64.b64encode(request.jpeg).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        system = [{"role": "system", "content": request.system}] if request.system else []
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": content}],
            self._length_field: request.max_new_tokens,
            "temperature": 0.0,
        }
        if asks_logprobs:
            arguments["logprobs"] = True
            if request.top_logprobs:
                arguments["top_logprobs"] = request.top_logprobs
        arguments = {name: value for name, value in (arguments | request.fields).items() if value is not None}
        required = {name: arguments.pop(name) for name in ("model", "messages")}
        # extra_body also takes fields that the client does not know
        return required | {"extra_body": arguments}

    def _handle_error(self, error: Any, is_alive: bool) -> str:
        """Return a request's own error; raise EngineError for one that concerns other requests too."""
        status, body = getattr(error, "status_code", None), error.body
        server_message = body.get("message") if isinstance(body, dict) else None
        message = self._redact(str(server_message or error.message))
        if status in (400, 413, 415, 422):
            return f"{'refused' if _is_refusal(error) else 'rejected'}: {message}"
        if is_alive and isinstance(error, self._openai.APITimeoutError):
            return f"timeout: no whole answer within {self.server.timeout:g} s"
        if is_alive and (status is None or status >= 500):
            # every retry has failed while other requests got answers
            return f"failed: {message if status else self._redact(str(error.__cause__ or error))}"
        if status in (401, 403):
            problem = f"does not accept the key in OPENAI_API_KEY ({message})"
        elif status == 404:
            problem = f"has no model '{self.model}', or no chat API ({message})"
        elif status is not None and 300 <= status < 400:
            target = self._redact(without_query(error.response.headers.get("location", "")))
            problem = f"redirects to '{target}', where no picture is sent; if you trust it, name it with --base-url"
        elif status is not None:
            problem = f"keeps answering {status} ({message}); its answers are cached: run the same command to resume"
        else:
            cause = error.__cause__ or error
            reason = self._redact(str(cause)) or type(cause).__name__
            problem = f"does not answer ({reason}); start it, or correct --base-url, and run the same command again"
        self._fatal_error = EngineError(f"The server at {self.url} {problem}.")
        raise self._fatal_error

    def _redact(self, text: str) -> str:
        """Return a server's message on one line, with the API key removed."""
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return clean_message(text)


def openai_fingerprint(model: str) -> str:
    """Return a fingerprint of the model's name; servers reveal nothing else."""
    return f"openai:{model}"


def encode_jpeg(image: Image.Image) -> tuple[bytes, str]:
    """Return the image as JPEG, and a digest of its pixels."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue(), hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


def _is_refusal(error: Any) -> bool:
    return getattr(error, "code", None) in ("content_filter", "content_policy_violation", "moderation_blocked")


def _import_openai() -> Any:
    try:
        import openai
    except ImportError:
        raise ImportError("A model behind a server needs: pip install 'capfilt[openai]'") from None
    return openai
