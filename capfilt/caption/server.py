"""`openai:MODEL`: captions from a server with OpenAI's chat API.

The requests for a picture start as soon as it is decoded, so they overlap with reading and with earlier batches.
Answers are cached by (pixels, model, prompt, settings), see `capfilt/vlm/server.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from PIL import Image

from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig, parse_answer
from capfilt.vlm.answer import MAX_CHARACTERS_PER_TOKEN, MAX_MESSAGE, TOO_LONG, Answer
from capfilt.vlm.server import ChatRequest, ChatServer, ServerConfig, encode_jpeg, openai_fingerprint


class OpenAICaptioner:
    """A model behind a server. A caption depends on picture and settings alone, if the server respects the seed."""

    def __init__(self, model: str, settings: ChatConfig, server: ServerConfig) -> None:
        """Connect, and caption a grey picture, to find a wrong key, model or setting early."""
        self.name, self.fingerprint = model, openai_fingerprint(model)
        self.settings = settings
        self.server = ChatServer(model, server, settings.max_new_tokens)
        jpeg, digest = encode_jpeg(Image.new("RGB", (224, 224), "grey"))
        answer = self.server.check(self._key(digest, 0), self._request(jpeg, 0))
        caption = to_caption(answer, settings.max_new_tokens)
        if caption.text and caption.logprob is None and settings.extra.get("logprobs", True):
            print(
                f"The server at {self.server.url} returns no log-probabilities of captions: they have no confidence.",
                file=sys.stderr,
                flush=True,
            )

    @property
    def spent(self) -> float:
        """Dollars of this run's answers, 0 without prices."""
        return self.server.spent

    def prepare(self, image: Image.Image) -> Future[list[Caption]]:
        """Start the requests for an RGB image; return their future captions."""
        return self.server.start(self._caption_image(*encode_jpeg(image)))

    def caption(self, inputs: Sequence[Future[list[Caption]]], keys: Sequence[str]) -> list[list[Caption]]:
        """Wait for the captions; EngineError if the server is gone or rejects all requests."""
        return [captions.result() for captions in inputs]

    async def _caption_image(self, jpeg: bytes, digest: str) -> list[Caption]:
        indices = range(self.settings.num_captions)
        answers = [self.server.ask(self._key(digest, index), self._request(jpeg, index)) for index in indices]
        return [to_caption(answer, self.settings.max_new_tokens) for answer in await asyncio.gather(*answers)]

    def _key(self, digest: str, index: int) -> Any:
        """Return what caption `index` of a picture depends on."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "num_captions"}
        return [self.name, settings, index, digest]

    def _request(self, jpeg: bytes, index: int) -> ChatRequest:
        settings = self.settings
        fields = chat_fields(settings, index)
        return ChatRequest(settings.prompt, jpeg, settings.system, settings.max_new_tokens, fields=fields)


def chat_fields(settings: ChatConfig, index: int) -> dict[str, Any]:
    """Return the fields of a request that set its decoding, with a seed for text `index`."""
    fields: dict[str, Any] = {}
    if settings.mode == "nucleus":
        seed = hashlib.sha256(f"{settings.seed}/{index}".encode()).digest()
        # servers store the seed as a signed 32-bit integer
        seed31 = int.from_bytes(seed[:4], "big") >> 1
        fields = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed31}
    return fields | settings.extra


def to_caption(answer: Answer | str, max_new_tokens: int) -> Caption:
    """Return the caption in an answer, or the reason why there is none; a string is the error of a request."""
    if isinstance(answer, str):
        return Caption(None, None, answer)
    if answer.finish == "content_filter" or answer.refusal:
        return Caption(None, None, f"refused: {answer.refusal or 'content filter'}"[:MAX_MESSAGE])
    is_cut = (answer.finish or "").lower() in TOO_LONG
    is_endless = len(answer.text or "") > MAX_CHARACTERS_PER_TOKEN * max_new_tokens
    return parse_answer(answer.text, not (is_cut or is_endless), answer.logprob)
