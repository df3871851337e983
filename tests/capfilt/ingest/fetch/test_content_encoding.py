"""Bodies are decoded by their Content-Encoding, in bounded memory."""

from __future__ import annotations

import gzip
import zlib

import pyarrow as pa
import pytest
from web import picture

from capfilt.ingest.fetch.attempts import classify_failure
from capfilt.ingest.fetch.content_encoding import BodyTooLargeError, EncodingError, decode_body

JPEG = picture(3)
LIMIT = 100_000


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (None, JPEG),
        ("", JPEG),
        ("gzip", gzip.compress(JPEG)),
        ("x-gzip", gzip.compress(JPEG)),
        ("GZip", gzip.compress(JPEG)),
        ("deflate", zlib.compress(JPEG)),
        ("deflate", raw_deflate(JPEG)),
        ("gzip", zlib.compress(JPEG)),
        ("gzip, gzip", gzip.compress(gzip.compress(JPEG))),
        ("deflate,gzip", gzip.compress(zlib.compress(JPEG))),
        ("gzip, identity", gzip.compress(JPEG)),
        # two members; bytes after the end
        ("gzip", gzip.compress(JPEG[:100]) + gzip.compress(JPEG[100:])),
        ("gzip", gzip.compress(JPEG) + bytes(512)),
        # encodings that are none, and the plain file in place of the encoding
        ("utf-8", JPEG),
        ("binary", JPEG),
        ("gzip", JPEG),
        ("br", JPEG),
        ("gzip, gzip", gzip.compress(JPEG)),
    ],
)
def test_bodies_come_back_as_the_file(header: str | None, body: bytes) -> None:
    assert decode_body(body, header, LIMIT) == JPEG


def test_an_empty_body_stays_empty() -> None:
    assert decode_body(b"", "gzip", LIMIT) == b""


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("gzip", gzip.compress(JPEG)[:-200]),
        ("gzip", b"<html>no</html>"),
        ("deflate", zlib.compress(JPEG)[:50]),
        ("deflate", b"\xff"),
        ("gzip, gzip, gzip, gzip, gzip, gzip", gzip.compress(JPEG)),
        ("compress", b"\x1f\x9d\x90"),
    ],
)
def test_damaged_bodies_are_decode_errors(header: str, body: bytes) -> None:
    with pytest.raises(EncodingError) as caught:
        decode_body(body, header, LIMIT)
    assert classify_failure(str(caught.value)) == "decode_error"


def test_a_bomb_is_decoded_no_further_than_the_limit() -> None:
    bomb = gzip.compress(bytes(10**7))
    twice = gzip.compress(bomb)
    members = gzip.compress(bytes(LIMIT // 2)) * 1000
    for header, body in (
        ("gzip", bomb),
        ("gzip, gzip", twice),
        ("gzip", members),
        ("deflate", zlib.compress(bytes(10**7))),
    ):
        with pytest.raises(BodyTooLargeError):
            decode_body(body, header, LIMIT)


@pytest.mark.parametrize(("header", "codec"), [("br", "brotli"), ("zstd", "zstd")])
def test_other_encodings_are_decoded_by_arrow(header: str, codec: str) -> None:
    encoded = pa.compress(JPEG, codec=codec, asbytes=True)
    assert decode_body(encoded, header, LIMIT) == JPEG
    with pytest.raises(BodyTooLargeError):
        decode_body(pa.compress(bytes(10**7), codec=codec, asbytes=True), header, LIMIT)
    for broken in (b"\x01" + encoded[:50], b"<html>"):
        with pytest.raises(EncodingError, match="broken") as caught:
            decode_body(broken, header, LIMIT)
        assert classify_failure(str(caught.value)) == "decode_error"
