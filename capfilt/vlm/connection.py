"""The address of a chat server, and an HTTP client with limits on its responses."""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from urllib.parse import urlsplit

from capfilt.vlm.answer import UnusableAnswerError, clean_message, read_body

# Of a response, for retries and messages; those about a compressed body would be wrong.
KEPT_HEADERS = (b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry", b"x-request-id", b"location")


def check_server_url(url: str, origin: str) -> None:
    """Raise ValueError if a URL is no address of a server, or has a login, which would replace the API key."""
    try:
        parts = urlsplit(url)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        address = clean_message(url.rpartition("@")[2])
        raise ValueError(f"{origin} '{address}' is no address of a server, such as http://localhost:8000/v1.")
    if "@" in parts.netloc:
        raise ValueError(
            f"{origin} has a login before '{parts.hostname}'; remove it, and put the key in OPENAI_API_KEY."
        )


def without_query(url: str) -> str:
    """Return a URL without its login, query and fragment, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def bounded_client(openai: Any, seconds: float, limit: int) -> Any:
    """Return an HTTP client whose responses are whole within `seconds`, have at most `limit` bytes and no redirects."""
    # httpx, or in later versions of openai httpx2
    httpx = sys.modules[openai.DefaultAsyncHttpxClient.mro()[1].__module__.partition(".")[0]]

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            problem, body = "", None
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **(options | {"stream": True}))
                    try:
                        encoding = response.headers.get("content-encoding", "")
                        body = await read_body(response.aiter_raw(), encoding, limit)
                    except UnusableAnswerError as error:
                        problem = f"malformed: {error}"
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise httpx.ReadTimeout(f"the answer is not whole within {seconds:g} s", request=request) from None
            if body is None and not problem:
                problem = f"too_large: an answer of more than {limit} bytes"
            headers = [(name, value) for name, value in response.headers.raw if name.lower() in KEPT_HEADERS]
            return httpx.Response(
                response.status_code,
                headers=headers,
                content=body or b"",
                request=request,
                extensions={"problem": problem},
            )

    # the body is bounded by our own reader, which unpacks gzip at most
    return BoundedClient(timeout=seconds, follow_redirects=False, headers={"Accept-Encoding": "gzip"})
