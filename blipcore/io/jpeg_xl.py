"""Reads the size of a JPEG XL without decoding it: its plug-in for Pillow decodes a file as soon as it is opened.

The layout is that of ISO/IEC 18181-1 (`SizeHeader`) and 18181-2 (boxes).
"""

from __future__ import annotations

from collections.abc import Iterator

CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
SIZE_BITS = (9, 13, 18, 30)  # of a side, by its selector
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width : height


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels; None if `data` is no JPEG XL. Raises ValueError if it has no size."""
    if data.startswith(CODESTREAM):
        return _read_size(data[2:])
    if not data.startswith(CONTAINER):
        return None
    for kind, start in _boxes(data):
        if kind in (b"jxlc", b"jxlp"):  # a part of a codestream begins with its number
            codestream = data[start + (4 if kind == b"jxlp" else 0) :][:64]
            if codestream.startswith(CODESTREAM):
                return _read_size(codestream[2:])
    raise ValueError("a JPEG XL without a codestream")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield (type, start of the content) of each box."""
    position = 0
    while position + 8 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        start = position + 8
        if size == 1:
            size = int.from_bytes(data[start : start + 8], "big")
            start += 8
        yield kind, start
        if size < start - position:  # 0: the last box
            return
        position += size


def _read_size(header: bytes) -> tuple[int, int]:
    bits = int.from_bytes(header[:16], "little")
    if len(header) < 10:
        raise ValueError("a JPEG XL that is cut short")

    def read(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    is_small = read(1)

    def read_side() -> int:
        return 8 * (read(5) + 1) if is_small else read(SIZE_BITS[read(2)]) + 1

    height = read_side()
    ratio = RATIOS.get(read(3))
    width = read_side() if ratio is None else height * ratio[0] // ratio[1]
    return width, height
