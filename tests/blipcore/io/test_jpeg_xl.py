"""The size of a JPEG XL is read from its header."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from blipcore.io.jpeg_xl import CODESTREAM, CONTAINER, jpeg_xl_size


def bits(*fields: tuple[int, int]) -> bytes:
    """Return (value, bits) fields from the lowest bit on, followed by zeros."""
    number = position = 0
    for value, count in fields:
        number |= value << position
        position += count
    return number.to_bytes(20, "little")


@pytest.mark.parametrize(
    "size", [(64, 48), (8, 8), (256, 256), (1000, 750), (37, 211), (513, 512), (640, 480), (9000, 5)]
)
@pytest.mark.parametrize("container", [False, True])
def test_sizes_are_those_of_the_decoder(size: tuple[int, int], container: bool) -> None:
    pytest.importorskip("pillow_jxl")
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "JXL", use_container=container, effort=1)
    assert buffer.getvalue().startswith(CONTAINER if container else CODESTREAM)
    assert jpeg_xl_size(buffer.getvalue()) == size


def test_a_bomb_is_recognised_by_its_header() -> None:
    bomb = CODESTREAM + bits((0, 1), (3, 2), ((1 << 30) - 1, 30), (7, 3))
    assert jpeg_xl_size(bomb) == (1 << 31, 1 << 30)
    part = len(bomb + bytes(12)).to_bytes(4, "big") + b"jxlp" + bytes(4) + bomb
    assert jpeg_xl_size(CONTAINER + b"\0\0\0\x14ftypjxl \0\0\0\0jxl " + part) == (1 << 31, 1 << 30)


@pytest.mark.parametrize(
    "data",
    [CODESTREAM, CODESTREAM + b"\0" * 5, CONTAINER, CONTAINER + bytes(100), CONTAINER + b"\0\0\0\1jxlc" + b"\xff" * 30],
)
def test_a_file_without_a_size_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="a JPEG XL"):
        jpeg_xl_size(data)


def test_other_files_have_none() -> None:
    assert jpeg_xl_size(b"") is jpeg_xl_size(b"\xff\xd8\xff\xe0") is None
