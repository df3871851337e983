"""Byte order marks, and the decoding of texts of unknown encoding."""

from __future__ import annotations

import codecs

# mark -> encoding of what follows it. UTF-32 comes first: its mark begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """Return a text: by its byte order mark, else as UTF-8, else in `encoding`.

    Raises ValueError if it is none of these, and for a NUL, which UTF-16 without a mark has.
    """
    mark = next((mark for mark in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if mark is not None:
        return _without_nul(data[len(mark) :].decode(BYTE_ORDER_MARKS[mark]))
    try:
        return _without_nul(data.decode("utf-8"))
    except ValueError:
        if encoding is None:
            raise
    return _without_nul(data.decode(encoding))


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"a NUL at character {text.index(chr(0))}, as in UTF-16 or a binary file")
    return text
