"""Bytes of a picture in, an upright 8-bit RGB picture out, or a `DecodeError` that names what is wrong.

Every stage that looks at pictures comes through here, so that all of them see the same pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from PIL import Image

from blipcore.io.images import EXIF_ORIENTATION, open_picture, orientation, upright_rgb

MAX_PIXELS = 80_000_000  # about 240 MB once decoded to RGB; beyond it a picture is taken for a bomb

# Corrupt EXIF, odd palettes and the like: nothing that whoever watches a progress bar could act on.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DecodeError(ValueError):
    """A picture that cannot be used; `reason` is one of empty, not_a_picture, truncated, corrupt, too_many_pixels."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode(data: bytes) -> Image.Image:
    """Bytes of a picture -> upright 8-bit RGB: EXIF orientation applied, 16 bits scaled, transparency on white."""
    with _named_errors():
        return upright_rgb(_open(data))


class Fitted(NamedTuple):
    """A picture as it is stored: its bytes, its size, and the upright size that it came with."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def fit(data: bytes, longest: int = 0, quality: int = 95, told: int = 1) -> Fitted:
    """Make bytes of any kind into an upright JPEG whose longer side is at most `longest` (0: as it is).

    An upright JPEG in RGB or grey that is small enough keeps its bytes; all pixels are decoded in any case. `told` is
    an orientation that counts where the bytes hold none.
    """
    with _named_errors():
        image = _open(data)
        if told != 1:
            with suppress(Exception):  # struct.error and what else an EXIF that cannot be read raises
                image.getexif().setdefault(EXIF_ORIENTATION, told)
        shrink = bool(longest) and max(image.size) > longest
        jpeg, lying = image.format == "JPEG", orientation(image)
        original = image.size[::-1] if lying >= 5 else image.size
        if shrink and jpeg:
            image.draft(None, (2 * longest, 2 * longest))  # skips most of the work on a large photograph
        image.load()
        if jpeg and image.mode in ("RGB", "L") and lying == 1 and not shrink:
            return Fitted(data, *original, *original)
        picture = upright_rgb(image)
        if not jpeg:  # some decoders turn the picture themselves
            original = picture.size
        if shrink:
            ratio = longest / max(original)
            size = (max(1, round(original[0] * ratio)), max(1, round(original[1] * ratio)))
            picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Fitted(buffer.getvalue(), *picture.size, *original)


def difference_hash(data: bytes) -> str:
    """64 bits as 16 hex digits: whether each of 8 x 8 patches of the upright picture is darker than its right one."""
    import numpy as np

    with _named_errors():
        image = _open(data)
        image.draft("L", (64, 64))  # of a JPEG only what is needed is decoded
        image = upright_rgb(image).convert("L")
        small = np.asarray(image.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, :-1] < small[:, 1:]).tobytes().hex()


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) as stored, from the header alone."""
    with _named_errors():
        return _open(data).size


@contextmanager
def _named_errors() -> Iterator[None]:
    """Turns whatever Pillow raises into a DecodeError: OSError, SyntaxError, struct.error, ... by decoder."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        raise DecodeError("truncated" if cut else "corrupt", _one_line(error)) from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError("empty")
    try:
        image = open_picture(data)
    except Image.UnidentifiedImageError:
        head = data[:256].lstrip().lower()
        what = "HTML" if head.startswith((b"<!doctype", b"<html", b"<head", b"<body")) else f"starts with {data[:8]!r}"
        raise DecodeError("not_a_picture", what) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too_many_pixels", _one_line(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError("too_many_pixels", f"{image.width} x {image.height}")
    return image


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
