"""Decodes pictures to upright 8-bit sRGB, or raises a `DecodeError` with the reason.

All stages decode with this module, so they see the same pixels. A picture may have at most `MAX_PIXELS`, unless the
shard set was written with a higher limit. The pictures that the threads of a process decode at the same time share
`DECODE_BYTES`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple, TypeVar

from PIL import Image

from blipcore.io.images import EXIF_ORIENTATION, missing_decoder, open_picture, read_orientation, upright_rgb
from blipcore.io.jpeg_xl import jpeg_xl_size
from blipcore.io.messages import one_line
from capfilt.pictures.decode_memory import DecodeMemory

T = TypeVar("T")

# A larger picture counts as a decompression bomb, unless the setting `max_pixels` is higher.
MAX_PIXELS = 80_000_000
DECODE_BYTES = 1 << 30
# Peak memory of decoding per pixel, measured: the decoder's own buffers, Pillow's 4 bytes, and the upright copy.
BYTES_PER_PIXEL = 12
BYTES_PER_PIXEL_OF = {"JPEG2000": 24, "AVIF": 16, "HEIF": 16, "JXL": 32, "WEBP": 18}

_HOW_TO_RAISE = "the limit is the setting max_pixels"
_memory = DecodeMemory(DECODE_BYTES)

# The user cannot act on warnings about corrupt EXIF or odd palettes, which disturb the progress bar.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DecodeError(ValueError):
    """A picture that cannot be used; `reason` is one of empty, not_a_picture, truncated, corrupt, too_many_pixels."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an upright 8-bit sRGB image: EXIF orientation and ICC profile applied, 16 bits scaled, white below."""
    return prepare_picture(data, lambda image: image, max_pixels)


def prepare_picture(data: bytes, prepare: Callable[[Image.Image], T], max_pixels: int = MAX_PIXELS) -> T:
    """Return the result of `prepare` for the image of `decode_picture`, whose memory is reserved until then."""
    with ExitStack() as memory:
        with _named_errors():
            image = _open(data, max_pixels, memory)
            _reserve_memory(image, memory)
            image = upright_rgb(image)
        prepared = prepare(image)
        del image  # before its memory counts as free
        return prepared


class StoredJpeg(NamedTuple):
    """A picture as it is stored in a shard, with its size and its original upright size in pixels."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    dhash: str


def to_jpeg(
    data: bytes,
    max_side: int = 0,
    quality: int = 95,
    default_orientation: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> StoredJpeg:
    """Convert a picture to an upright JPEG whose longer side is at most `max_side` pixels (0: no limit).

    An upright JPEG in RGB or grey that is small enough keeps its bytes, and so its ICC profile. All others are
    converted to sRGB and have no profile. `default_orientation` is the EXIF orientation of pictures without one.
    """
    with ExitStack() as memory, _named_errors():
        # The decoded images are freed when this call returns; only then is their share of the budget released.
        return _to_jpeg(data, max_side, quality, default_orientation, max_pixels, memory)


def _to_jpeg(
    data: bytes, max_side: int, quality: int, default_orientation: int, max_pixels: int, memory: ExitStack
) -> StoredJpeg:
    image = _open(data, max_pixels, memory)
    if default_orientation != 1:
        with suppress(Exception):  # unreadable EXIF raises struct.error and others
            image.getexif().setdefault(EXIF_ORIENTATION, default_orientation)
    shrink = bool(max_side) and max(image.size) > max_side
    is_jpeg, exif_orientation = image.format == "JPEG", read_orientation(image)
    width, height = image.size[::-1] if exif_orientation >= 5 else image.size
    if shrink and is_jpeg:
        # decodes a large photograph at a fraction of the cost
        image.draft(None, (2 * max_side, 2 * max_side))
    _reserve_memory(image, memory)
    if is_jpeg and image.mode in ("RGB", "L") and exif_orientation == 1 and not shrink:
        # The hash decodes every block of the JPEG, at a low resolution: that finds damage as a full decode does.
        return StoredJpeg(data, width, height, width, height, difference_hash(data, max_pixels))
    picture = upright_rgb(image)
    if not is_jpeg:  # the decoders of some formats rotate the picture
        width, height = picture.size
    if shrink:
        ratio = max_side / max(width, height)
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        # From 640 to 512 pixels: 3.7 ms, Lanczos 6.4 ms of about 10 ms per picture.
        picture = picture.resize(size, Image.Resampling.HAMMING, reducing_gap=3.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    stored = buffer.getvalue()
    return StoredJpeg(stored, *picture.size, width, height, difference_hash(stored, max_pixels))


def difference_hash(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Return 64 bits as 16 hex digits: for each of 8 x 8 patches, 1 if it is darker than the patch to its right."""
    import numpy as np

    with ExitStack() as memory, _named_errors():
        image = _open(data, max_pixels, memory)
        image.draft("L", (64, 64))  # decodes a JPEG at a low resolution only
        image.info.pop("icc_profile", None)
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


def _reserve_memory(image: Image.Image, memory: ExitStack) -> None:
    """Reserve the memory for decoding an opened picture, at most; that of a JPEG XL is reserved by `_open`."""
    if image.format != "JXL":
        size = image.width * image.height * BYTES_PER_PIXEL_OF.get(image.format or "", BYTES_PER_PIXEL)
        memory.enter_context(_memory.reserve(size))


def _require_few_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        detail = f"{width} x {height} is more than {max_pixels:,} pixels ({_HOW_TO_RAISE})"
        raise DecodeError("too_many_pixels", detail)


def _open(data: bytes, max_pixels: int, memory: ExitStack) -> Image.Image:
    if not data:
        raise DecodeError("empty")
    if not missing_decoder(data[:16]) and (size := jpeg_xl_size(data)):
        _require_few_pixels(*size, max_pixels)
        # Its plug-in decodes a file as soon as it is opened.
        memory.enter_context(_memory.reserve(size[0] * size[1] * BYTES_PER_PIXEL_OF["JXL"]))
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        image = open_picture(data)
    except Image.UnidentifiedImageError:
        is_html = data[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<body"))
        detail = "HTML" if is_html else missing_decoder(data[:16]) or f"starts with {data[:8]!r}"
        raise DecodeError("not_a_picture", detail) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too_many_pixels", f"{one_line(error)} ({_HOW_TO_RAISE})") from None
    _require_few_pixels(image.width, image.height, max_pixels)
    return image
