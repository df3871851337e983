"""`openai:MODEL`: captions from a server with OpenAI's chat API, such as vLLM, SGLang and llama.cpp.

The requests for a picture start as soon as it is decoded, `concurrency` at a time, so they overlap with reading and
with earlier batches. Answers are cached by (pixels, model, prompt, settings): none is paid for twice, even after a kill
or in another data set. The client retries temporary failures and respects `Retry-After`.
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
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from capfilt.caption.answer import (
    MAX_BODY,
    MAX_BODY_PER_TOKEN,
    Answer,
    UnusableAnswerError,
    clean_message,
    parse_completion,
)
from capfilt.caption.answer_cache import AnswerCache, default_cache_path
from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig
from capfilt.caption.connection import bounded_client, check_server_url, without_query
from capfilt.errors import EngineError

JPEG_QUALITY = 95
# Outcomes of the check picture that every other picture would have too.
FAULTS = ("rejected", "malformed", "too_large", "timeout", "failed")


@dataclass
class ServerConfig:
    """The server of an `openai:` captioner, with the key in OPENAI_API_KEY; no caption depends on these settings."""

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

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise ValueError("server.concurrency must be at least 1, retries at least 0 and timeout above 0 seconds.")
        if self.base_url:
            check_server_url(self.base_url, "--base-url")


class OpenAICaptioner:
    """A model behind a server. A caption depends on picture and settings alone, if the server respects the seed."""

    def __init__(self, model: str, settings: ChatConfig, server: ServerConfig) -> None:
        self.name, self.fingerprint = model, openai_fingerprint(model)
        self.model, self.settings, self.server = model, settings, server
        self._openai = _import_openai()
        url = server.base_url or os.environ.get("OPENAI_BASE_URL")
        self._api_key = os.environ.get("OPENAI_API_KEY", "")
        if url:
            check_server_url(url, "OPENAI_BASE_URL")
        if not url and not self._api_key:
            raise ValueError("OpenAI's server needs a key in OPENAI_API_KEY; name another server with --base-url.")
        self._url = without_query(url or "https://api.openai.com/v1")
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
            http_client=bounded_client(
                self._openai, server.timeout, MAX_BODY + MAX_BODY_PER_TOKEN * settings.max_new_tokens
            ),
        )
        self._slots = asyncio.Semaphore(server.concurrency)
        self._requests: dict[str, asyncio.Task[Caption]] = {}  # unanswered, by cache key
        # ended the run; raised by all requests that wait for a slot
        self._fatal_error: EngineError | None = None
        self._last_answer = 0.0  # in seconds of the loop's clock
        self._other_model = ""  # that the server has named in an answer
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()
        self._check_server()
        self._client = self._client.with_options(max_retries=server.retries)

    def prepare(self, image: Image.Image) -> Future[list[Caption]]:
        """Start the requests for an RGB image; return their future captions."""
        return self._start(self._caption_image(*_encode(image)))

    def caption(self, inputs: Sequence[Future[list[Caption]]], keys: Sequence[str]) -> list[list[Caption]]:
        """Wait for the captions; EngineError if the server is gone or rejects all requests."""
        return [captions.result() for captions in inputs]

    def _start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _check_server(self) -> None:
        """Caption a grey image, to find a wrong key, model or setting early."""
        try:
            caption = self._start(self._caption_once(*_encode(Image.new("RGB", (224, 224), "grey")), index=0)).result()
        except EngineError as error:
            raise ValueError(str(error)) from None
        if caption.error and caption.error.startswith(FAULTS):
            raise ValueError(f"The server at {self._url} does not accept the request ({caption.error}).")

    async def _caption_image(self, jpeg: bytes, digest: str) -> list[Caption]:
        indices = range(self.settings.num_captions)
        return await asyncio.gather(*(self._caption_once(jpeg, digest, index) for index in indices))

    async def _caption_once(self, jpeg: bytes, digest: str, index: int) -> Caption:
        """Return one caption; equal requests at the same time are sent once."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "num_captions"}
        content = json.dumps([self.model, settings, index, digest], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()
        if key not in self._requests:
            self._requests[key] = asyncio.ensure_future(self._request_caption(key, jpeg, index))
        try:
            return await self._requests[key]
        finally:
            self._requests.pop(key, None)

    async def _request_caption(self, key: str, jpeg: bytes, index: int) -> Caption:
        """Return a caption from the cache, otherwise from the server; an unusable cached answer is requested again."""
        answer = self._cached_answer(key)
        if answer is None:
            async with self._slots:
                if self._fatal_error:
                    raise self._fatal_error
                response = await self._send(jpeg, index)
            if isinstance(response, Caption):
                return response
            self._last_answer = self._loop.time()
            problem = response.http_response.extensions.get("problem")
            if problem:
                return Caption(None, None, problem)
            try:
                answer, model = parse_completion(response.content)
            except UnusableAnswerError as error:
                return Caption(None, None, f"malformed: {self._redact(str(error))}")
            self._note_model(model)
            self._cache.put(key, answer._asdict())
        return answer.to_caption(self.settings.max_new_tokens)

    def _cached_answer(self, key: str) -> Answer | None:
        try:
            return Answer.from_dict(self._cache.get(key))
        except UnusableAnswerError:
            return None

    async def _send(self, jpeg: bytes, index: int) -> Any:
        """Return the server's response, or the picture's error; EngineError for one that concerns all pictures."""
        start = self._loop.time()
        asks_logprobs = self._logprobs is not False
        try:
            response = await self._create(jpeg, index, asks_logprobs)
            if asks_logprobs:
                self._logprobs = True
            return response
        except self._openai.APIError as error:
            refusal = error
        is_rejected = getattr(refusal, "status_code", None) in (400, 422, 501) and not _is_refusal(refusal)
        if self._logprobs is None and is_rejected:
            # the server may have no log-probabilities
            try:
                response = await self._create(jpeg, index, False)
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

    async def _create(self, jpeg: bytes, index: int, asks_logprobs: bool) -> Any:
        request = self._request(jpeg, index, asks_logprobs)
        return await self._client.chat.completions.with_raw_response.create(**request)

    def _note_model(self, model: str) -> None:
        """Say once that another model than the requested one has answered; a server may know it by another name."""
        asked = self.model.rpartition("/")[2].lower()
        if model and asked not in model.lower() and not self._other_model:
            self._other_model = model
            print(f"The server at {self._url} answers as model '{model}', not '{self.model}'.", file=sys.stderr)

    def _request(self, jpeg: bytes, index: int, asks_logprobs: bool) -> dict[str, Any]:
        """Return the arguments of the client for caption `index` of a picture."""
        settings = self.settings
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": settings.prompt}]
        system = [{"role": "system", "content": settings.system}] if settings.system else []
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": content}],
            self._length_field: settings.max_new_tokens,
            "temperature": 0.0,
        }
        if asks_logprobs:
            request["logprobs"] = True
        if settings.mode == "nucleus":
            seed = hashlib.sha256(f"{settings.seed}/{index}".encode()).digest()
            # servers store the seed as a signed 32-bit integer
            seed31 = int.from_bytes(seed[:4], "big") >> 1
            request |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed31}
        request = {name: value for name, value in (request | settings.extra).items() if value is not None}
        required = {name: request.pop(name) for name in ("model", "messages")}
        # extra_body also takes fields that the client does not know
        return required | {"extra_body": request}

    def _handle_error(self, error: Any, is_alive: bool) -> Caption:
        """Return a picture's own error; raise EngineError for one that concerns other pictures too."""
        status, body = getattr(error, "status_code", None), error.body
        server_message = body.get("message") if isinstance(body, dict) else None
        message = self._redact(str(server_message or error.message))
        if status in (400, 413, 415, 422):
            return Caption(None, None, f"{'refused' if _is_refusal(error) else 'rejected'}: {message}")
        if is_alive and isinstance(error, self._openai.APITimeoutError):
            return Caption(None, None, f"timeout: no whole answer within {self.server.timeout:g} s")
        if is_alive and (status is None or status >= 500):
            # every retry has failed while other pictures got answers
            return Caption(None, None, f"failed: {message if status else self._redact(str(error.__cause__ or error))}")
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
        self._fatal_error = EngineError(f"The server at {self._url} {problem}.")
        raise self._fatal_error

    def _redact(self, text: str) -> str:
        """Return a server's message on one line, with the API key removed."""
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return clean_message(text)


def openai_fingerprint(model: str) -> str:
    """Return a fingerprint of the model's name; servers reveal nothing else."""
    return f"openai:{model}"


def _encode(image: Image.Image) -> tuple[bytes, str]:
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
        raise ImportError("A captioner behind a server needs: pip install 'capfilt[openai]'") from None
    return openai
