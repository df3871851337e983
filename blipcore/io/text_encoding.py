"""Decodes the bytes of texts."""

from __future__ import annotations

import codecs

# Longest first: the mark of UTF-16 is the start of that of UTF-32.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """Return a text: by its byte order mark, else as UTF-8, else in `encoding`.

    Raises ValueError if it is none of these, and for a NUL, which UTF-16 without a mark has.
    """
    marked = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if marked is not None:
        return _without_nul(data.decode(marked))
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
