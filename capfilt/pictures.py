"""Bytes of a picture in, an upright 8-bit RGB picture out, or a `DecodeError` that names what is wrong.

Every stage that looks at pictures comes through here, so that all of them see the same pixels.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

MAX_PIXELS = 80_000_000  # about 240 MB once decoded to RGB; beyond it a picture is taken for a bomb

# Raster formats only: Pillow would start Ghostscript for an EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "DIB")


class DecodeError(ValueError):
    """A picture that cannot be used; `reason` is one of empty, not_a_picture, truncated, corrupt, too_many_pixels."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode(data: bytes) -> Image.Image:
    """Bytes of a picture -> upright 8-bit RGB: EXIF orientation applied, 16 bits scaled, transparency on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF and the like: of no use to whoever reads a progress bar
        image = _open(data)
        try:
            image.load()
            return _to_rgb(_upright(image))
        except DecodeError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError, ...
            cut = "truncated" in str(error) or isinstance(error, EOFError)
            raise DecodeError("truncated" if cut else "corrupt", _one_line(error)) from None


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) as stored, from the header alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _open(data).size


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError("empty")
    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.UnidentifiedImageError:
        head = data[:256].lstrip().lower()
        what = "HTML" if head.startswith((b"<!doctype", b"<html", b"<head", b"<body")) else f"starts with {data[:8]!r}"
        raise DecodeError("not_a_picture", what) from None
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", _one_line(error)) from None
    except Exception as error:
        raise DecodeError("corrupt", _one_line(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError("too_many_pixels", f"{image.width} x {image.height}")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF: the picture itself is fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled_grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, whole range to 0..255; Pillow's own conversion clips at 255, which is almost white."""
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1.0 else 255.0
    else:
        top = 65535.0 if values.max(initial=0) <= 65535 else float(2**31 - 1)
    return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8), mode="L")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
