"""`openai:MODEL`: captions from a server that speaks OpenAI's chat protocol, as vLLM, SGLang and llama.cpp do.

A picture's requests set out as soon as it is decoded, so they overlap with the reading of others and with the answers
of earlier batches, `concurrency` at a time. An answer is kept under (pixels, model, prompt, settings), so that none is
paid for twice: not after a kill, nor in another data set. The only file that imports `openai`, whose client tries again
what may mend and waits as long as `Retry-After` asks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from capfilt.caption.answer_cache import Answers, usual_place
from capfilt.caption.chat import Caption, ChatConfig, read_answer
from capfilt.errors import EngineError

QUALITY = 95  # of the JPEG that is sent
KEPT_TEXT = 500  # characters of a server's message


@dataclass
class ServerConfig:
    """Where an `openai:` captioner is and how it is asked; no caption depends on it. The key is OPENAI_API_KEY's."""

    base_url: str | None = None  # such as http://localhost:8000/v1; else OPENAI_BASE_URL's, else OpenAI's own
    concurrency: int = 64  # requests under way at a time, in each worker, about the pictures of three batches at most
    timeout: float = 120.0  # seconds for an answer
    retries: int = 8  # after the first try, with growing waits
    cache: str | None = None  # SQLite file of the answers; ~/.cache/capfilt/answers.sqlite

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise ValueError("concurrency is at least 1, retries is 0 or more, timeout is above 0 seconds.")


class OpenAICaptioner:
    """A model behind a server; what it says depends on picture and settings, as far as the server keeps to them."""

    def __init__(self, model: str, settings: ChatConfig, server: ServerConfig) -> None:
        settings.require_no_beams()
        self.name, self.fingerprint = model, openai_fingerprint(model)
        self.model, self.settings, self.server = model, settings, server
        self._openai = _import_openai()
        url = server.base_url or os.environ.get("OPENAI_BASE_URL")
        self._secret = os.environ.get("OPENAI_API_KEY", "")
        if not url and not self._secret:
            raise ValueError(
                "OpenAI's own server needs a key in OPENAI_API_KEY; say where another one is with --base-url."
            )
        self._url = _without_login(url or "https://api.openai.com/v1")
        self._length = "max_tokens" if url else "max_completion_tokens"  # OpenAI's newer name, not known everywhere
        self._answers = Answers(Path(server.cache).expanduser() if server.cache else usual_place())
        self._client = self._openai.AsyncOpenAI(
            api_key=self._secret or "none", base_url=url, timeout=server.timeout, max_retries=min(2, server.retries)
        )
        self._slots = asyncio.Semaphore(server.concurrency)
        self._under_way: dict[str, asyncio.Task[Caption]] = {}
        self._over: EngineError | None = None  # what ended the run: nothing that waits is asked any more
        self._answered = 0.0  # when the server last answered, by the loop's clock
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()
        self._try_out()
        self._client = self._client.with_options(max_retries=server.retries)

    def prepare(self, image: Image.Image) -> Future[list[Caption]]:
        """Ask about an RGB picture; the answers come in their time."""
        return self._start(self._captions(*_sent(image)))

    def caption(self, inputs: Sequence[Future[list[Caption]]], keys: Sequence[str]) -> list[list[Caption]]:
        """Wait for the captions of pictures; EngineError when the server is gone or turns us away."""
        return [answers.result() for answers in inputs]

    def _start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _try_out(self) -> None:
        """Ask about an empty picture: what is wrong with key, model or settings shows before there is work."""
        try:
            said = self._start(self._once(*_sent(Image.new("RGB", (224, 224), "grey")), index=0)).result()
        except EngineError as error:
            raise ValueError(str(error)) from None
        if said.error and said.error.startswith(("rejected", "malformed")):
            raise ValueError(f"The server at {self._url} does not take the request ({said.error}).")

    async def _captions(self, jpeg: bytes, pixels: str) -> list[Caption]:
        return await asyncio.gather(*(self._once(jpeg, pixels, index) for index in range(self.settings.num_captions)))

    async def _once(self, jpeg: bytes, pixels: str, index: int) -> Caption:
        """One caption; while its request is under way, nobody else makes the same."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "num_captions"}
        about = json.dumps([self.model, settings, index, pixels], sort_keys=True)
        key = hashlib.sha256(about.encode()).hexdigest()
        if key not in self._under_way:
            self._under_way[key] = asyncio.ensure_future(self._ask(key, jpeg, index))
        try:
            return await self._under_way[key]
        finally:
            self._under_way.pop(key, None)

    async def _ask(self, key: str, jpeg: bytes, index: int) -> Caption:
        answer = self._answers.get(key)
        if answer is None:
            async with self._slots:
                if self._over:
                    raise self._over
                started = self._loop.time()
                try:
                    raw = await self._client.chat.completions.with_raw_response.create(**self._request(jpeg, index))
                except self._openai.APIError as error:
                    # an answer to another in the second half of our tries: the server has not gone away since
                    return self._failed(error, alive=self._answered > (started + self._loop.time()) / 2)
            self._answered = self._loop.time()
            try:
                answer = _parse(raw.content)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                return Caption(None, None, f"malformed: {self._quote(raw.text)}")
            self._answers.put(key, answer)
        if answer["finish"] == "content_filter" or answer["refusal"]:
            return Caption(None, None, f"refused: {answer['refusal'] or 'content filter'}"[:KEPT_TEXT])
        return read_answer(answer["text"], answer["finish"] != "length", answer["logprob"])

    def _request(self, jpeg: bytes, index: int) -> dict[str, Any]:
        settings = self.settings
        picture = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": settings.prompt}]
        system = [{"role": "system", "content": settings.system}] if settings.system else []
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": content}],
            self._length: settings.max_new_tokens,
            "temperature": 0.0,
        }
        if settings.mode == "nucleus":
            seed = hashlib.sha256(f"{settings.seed}/{index}".encode()).digest()
            seed31 = int.from_bytes(seed[:4], "big") >> 1  # servers keep it in 32 bits with a sign
            request |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed31}
        request = {name: value for name, value in (request | settings.extra).items() if value is not None}
        known = {name: request.pop(name) for name in ("model", "messages")}
        return known | {"extra_body": request}  # any field goes, whether the client knows it or not

    def _failed(self, error: Any, alive: bool) -> Caption:
        """The outcome of a picture that the server does not take; all that concerns others too is an EngineError."""
        status, body = getattr(error, "status_code", None), error.body
        told = body.get("message") if isinstance(body, dict) else None
        said = self._quote(str(told or error.message))
        if status in (400, 413, 415, 422):
            return Caption(None, None, f"{'refused' if _is_refusal(error) else 'rejected'}: {said}")
        if alive and (isinstance(error, self._openai.APITimeoutError) or (status or 0) >= 500):
            return Caption(None, None, f"failed: {said}")  # again and again: this picture does not agree with it
        if status in (401, 403):
            what = f"does not accept the key in OPENAI_API_KEY ({said})"
        elif status == 404:
            what = f"knows no model '{self.model}', or no chat ({said})"
        elif status is not None:
            what = f"keeps answering {status} ({said}); what it has said is kept: run the same command again to go on"
        else:
            why = self._quote(str(error.__cause__ or error)) or type(error.__cause__ or error).__name__
            what = f"does not answer ({why}); start it, or say with --base-url where it is, and run the command again"
        self._over = EngineError(f"The server at {self._url} {what}.")
        raise self._over

    def _quote(self, text: str) -> str:
        """A server's words on one line, without the key if it repeats it."""
        if self._secret:
            text = text.replace(self._secret, "***")
        return " ".join(text.split())[:KEPT_TEXT]


def openai_fingerprint(model: str) -> str:
    """The model's name: a server tells no more of it."""
    return f"openai:{model}"


def _sent(image: Image.Image) -> tuple[bytes, str]:
    """The JPEG of a picture, and a digest of its pixels."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue(), hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


def _parse(body: bytes) -> dict[str, Any]:
    choice = json.loads(body)["choices"][0]
    text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise TypeError
    tokens = (choice.get("logprobs") or {}).get("content") or []
    logprob = sum(token["logprob"] for token in tokens) if tokens else None
    return {"text": text, "refusal": refusal, "finish": choice.get("finish_reason"), "logprob": logprob}


def _is_refusal(error: Any) -> bool:
    return getattr(error, "code", None) in ("content_filter", "content_policy_violation", "moderation_blocked")


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _import_openai() -> Any:
    try:
        import openai
    except ImportError:
        raise ImportError("A captioner behind a server needs: pip install 'capfilt[openai]'") from None
    return openai
