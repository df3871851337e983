"""Decodes pictures to upright 8-bit RGB, or raises a `DecodeError` with the reason.

All stages decode with this module, so they see the same pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from PIL import Image

from blipcore.io.images import EXIF_ORIENTATION, open_picture, read_orientation, upright_rgb
from blipcore.io.messages import one_line

# About 240 MB once decoded to RGB. A larger picture counts as a decompression bomb.
MAX_PIXELS = 80_000_000

# The user cannot act on warnings about corrupt EXIF or odd palettes, which disturb the progress bar.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DecodeError(ValueError):
    """A picture that cannot be used; `reason` is one of empty, not_a_picture, truncated, corrupt, too_many_pixels."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode_picture(data: bytes) -> Image.Image:
    """Return an upright 8-bit RGB image: EXIF orientation applied, 16 bits scaled, transparency on white."""
    with _named_errors():
        return upright_rgb(_open(data))


class StoredJpeg(NamedTuple):
    """A picture as it is stored in a shard, with its size and its original upright size in pixels."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def to_jpeg(data: bytes, max_side: int = 0, quality: int = 95, default_orientation: int = 1) -> StoredJpeg:
    """Convert a picture to an upright JPEG whose longer side is at most `max_side` pixels (0: no limit).

    An upright JPEG in RGB or grey that is small enough keeps its bytes, after a full decode that finds damage.
    `default_orientation` is the EXIF orientation of pictures without one.
    """
    with _named_errors():
        image = _open(data)
        if default_orientation != 1:
            with suppress(Exception):  # unreadable EXIF raises struct.error and others
                image.getexif().setdefault(EXIF_ORIENTATION, default_orientation)
        shrink = bool(max_side) and max(image.size) > max_side
        is_jpeg, exif_orientation = image.format == "JPEG", read_orientation(image)
        width, height = image.size[::-1] if exif_orientation >= 5 else image.size
        if shrink and is_jpeg:
            # skips most of the work on a large photograph
            image.draft(None, (2 * max_side, 2 * max_side))
        image.load()
        if is_jpeg and image.mode in ("RGB", "L") and exif_orientation == 1 and not shrink:
            return StoredJpeg(data, width, height, width, height)
        picture = upright_rgb(image)
        if not is_jpeg:  # the decoders of some formats rotate the picture
            width, height = picture.size
        if shrink:
            ratio = max_side / max(width, height)
            size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
            picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return StoredJpeg(buffer.getvalue(), *picture.size, width, height)


def difference_hash(data: bytes) -> str:
    """Return 64 bits as 16 hex digits: for each of 8 x 8 patches, 1 if it is darker than the patch to its right."""
    import numpy as np

    with _named_errors():
        image = _open(data)
        image.draft("L", (64, 64))  # decodes a JPEG at a low resolution only
        image = upright_rgb(image).convert("L")
        small = np.asarray(image.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, :-1] < small[:, 1:]).tobytes().hex()


@contextmanager
def _named_errors() -> Iterator[None]:
    """Convert all errors of Pillow to DecodeError; its decoders raise OSError, SyntaxError, struct.error and more."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        is_truncated = "truncated" in str(error) or isinstance(error, EOFError)
        raise DecodeError("truncated" if is_truncated else "corrupt", one_line(error)) from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError("empty")
    try:
        image = open_picture(data)
    except Image.UnidentifiedImageError:
        is_html = data[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<body"))
        raise DecodeError("not_a_picture", "HTML" if is_html else f"starts with {data[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too_many_pixels", one_line(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError("too_many_pixels", f"{image.width} x {image.height}")
    return image
