"""Texts are decoded by their byte order mark, as UTF-8, or as told."""

from __future__ import annotations

import codecs

import pytest

from blipcore.io.text_encoding import decode_text

TEXT = "it’s a café"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_or_utf_8_needs_no_encoding(encoding: str) -> None:
    assert decode_text(TEXT.encode(encoding)) == TEXT
    assert decode_text(TEXT.encode(encoding), "cp1252") == TEXT
    assert decode_text(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be")) == TEXT


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
def test_other_bytes_need_an_encoding(encoding: str) -> None:
    with pytest.raises(ValueError):
        decode_text(TEXT.encode(encoding))
    assert decode_text(TEXT.encode(encoding), encoding) == TEXT


@pytest.mark.parametrize("data", [b"a\0 \0d\0", b"\xff\xfea", b"\xef\xbb\xbf\xff"])
def test_damage_is_an_error_without_letters_that_nobody_wrote(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_text(data)
