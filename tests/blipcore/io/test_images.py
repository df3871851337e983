"""Pictures are opened upright, as 8-bit RGB and on white."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from blipcore.io.images import EXIF_ORIENTATION, open_picture, read_orientation, upright_rgb


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(9))
def test_exif_orientations_are_applied_as_pillow_does(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encode(Image.fromarray(pixels), exif=exif)
    assert read_orientation(open_picture(data)) == max(1, orientation)
    assert upright_rgb(open_picture(data)).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert upright_rgb(open_picture(encode(image))).tobytes() == bytes([255, 0, 0, 255, 255, 255])


def test_grey_of_more_than_8_bits_is_scaled() -> None:
    values = np.array([[0, 32768, 65535]], np.uint16)
    assert upright_rgb(open_picture(encode(Image.fromarray(values)))).tobytes() == bytes(
        [0] * 3 + [128] * 3 + [255] * 3
    )
    floats = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert upright_rgb(open_picture(encode(floats, "TIFF"))).tobytes() == bytes([0] * 3 + [128] * 3 + [255] * 3)


def test_formats_that_are_not_pixels_are_refused() -> None:
    with pytest.raises(UnidentifiedImageError):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
