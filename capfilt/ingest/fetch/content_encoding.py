"""Decodes bodies by their Content-Encoding: gzip, deflate, br and zstd.

Every request asks for `identity`, but some servers always compress.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from functools import partial

# Parts of messages by which `attempts.classify_failure` finds the outcome.
UNKNOWN_ENCODING, BROKEN_ENCODING = "content encoding without a decoder", "broken content encoding"
MAX_LAYERS = 5  # encodings of one body, as in urllib3
# First bytes of pictures. None is the start of a compressed stream.
PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0", b"\xff\x0a")
_ARROW_LOCK = threading.Lock()


class EncodingError(ValueError):
    """A body that cannot be decoded."""


class BodyTooLargeError(EncodingError):
    """A body that is too large when decoded."""


def decode_body(body: bytes, header: str | None, max_bytes: int) -> bytes:
    """Return a body without the encodings of its Content-Encoding `header`, in at most `max_bytes` bytes.

    Unknown names, such as "utf-8", stand for no encoding, as in browsers. A body that starts like a picture is
    returned unchanged: some servers name an encoding and send the plain file.

    Raises EncodingError for an encoding without a decoder and for a damaged body, and BodyTooLargeError.
    """
    names = [name for part in (header or "").lower().split(",") if (name := part.strip()) in DECODERS]
    if len(names) > MAX_LAYERS:
        raise EncodingError(f"{BROKEN_ENCODING}: {len(names)} layers")
    for name in reversed(names):
        if not body or body.startswith(PICTURE_STARTS):
            break
        body = DECODERS[name](body, max_bytes)
        if len(body) > max_bytes:
            raise BodyTooLargeError(name)
    return body


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    """Decode all members of a gzip stream; what follows them is ignored, as by browsers."""
    decoded, body = _inflate(body, max_bytes + 1, 32 + zlib.MAX_WBITS, "gzip")
    members = [decoded]
    size = len(decoded)
    while body.startswith(b"\x1f\x8b") and size <= max_bytes:
        decoded, body = _inflate(body, max_bytes + 1 - size, 16 + zlib.MAX_WBITS, "gzip")
        members.append(decoded)
        size += len(decoded)
    return b"".join(members)


def _decode_deflate(body: bytes, max_bytes: int) -> bytes:
    """Decode a zlib stream, or the raw deflate stream that old servers send under this name."""
    has_header = body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _inflate(body, max_bytes + 1, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS, "deflate")[0]


def _inflate(body: bytes, max_bytes: int, wbits: int, name: str) -> tuple[bytes, bytes]:
    """Return at most `max_bytes` decoded bytes of the first stream, and what follows it."""
    stream = zlib.decompressobj(wbits)
    try:
        decoded = stream.decompress(body, max_bytes)
    except zlib.error as error:
        raise EncodingError(f"{BROKEN_ENCODING}: {name}: {error}") from None
    if not stream.eof and len(decoded) < max_bytes:
        raise EncodingError(f"{BROKEN_ENCODING}: {name}: cut short")
    return decoded, stream.unused_data


def _decode_with_arrow(body: bytes, max_bytes: int, name: str) -> bytes:
    """Decode a stream of "brotli" or "zstd"."""
    import pyarrow as pa

    if not pa.Codec.is_available(name):
        raise EncodingError(f"{UNKNOWN_ENCODING}: {name}, which this build of pyarrow lacks")
    # One at a time, because a window takes up to 128 MB.
    with _ARROW_LOCK, pa.input_stream(pa.BufferReader(body), compression=name) as stream:
        try:
            return stream.read(max_bytes + 1)
        except (OSError, pa.ArrowException) as error:
            raise EncodingError(f"{BROKEN_ENCODING}: {name}: {error}") from None


def _refuse_compress(body: bytes, max_bytes: int) -> bytes:
    raise EncodingError(f"{UNKNOWN_ENCODING}: compress")


DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _decode_deflate,
    "br": partial(_decode_with_arrow, name="brotli"),
    "zstd": partial(_decode_with_arrow, name="zstd"),
    "compress": _refuse_compress,
    "x-compress": _refuse_compress,
}
