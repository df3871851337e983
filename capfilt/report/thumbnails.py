"""Thumbnails of the pictures of a tar, as data URLs."""

from __future__ import annotations

import base64
import io

from PIL import Image

from blipcore.io.samples import read_samples
from blipcore.io.storage import AnyPath
from capfilt.pictures.decode import DecodeError, decode_picture

# Pixels of a thumbnail's longer side.
THUMBNAIL_SIDE = 360
JPEG_QUALITIES = (80, 60, 40)


def read_thumbnails(tar: AnyPath, keys: set[str], size: int, max_pixels: int) -> dict[str, dict[str, str]]:
    """Return {"image": data URL} or {"missing": reason} per key that is in the tar."""
    if not tar.is_file():
        return {}
    thumbnails = {}
    for picture in read_samples(tar, keys=keys):
        try:
            if picture.error:
                raise DecodeError(picture.error)
            jpeg = make_thumbnail(decode_picture(picture.image, max_pixels), size)
            thumbnails[picture.key] = {"image": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")}
        except DecodeError as error:
            thumbnails[picture.key] = {"missing": error.reason}
    return thumbnails


def make_thumbnail(image: Image.Image, size: int) -> bytes:
    """Return a JPEG of at most `size` bytes: lower the quality first, then the number of pixels."""
    side = THUMBNAIL_SIDE
    while True:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        for quality in JPEG_QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= size or side <= 32:
                return buffer.getvalue()
        side //= 2
