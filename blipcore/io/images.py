"""Opens pictures as upright 8-bit RGB, with transparent parts on white.

Captioner, filter, report and trainer see the same pixels through these functions. torch is not imported.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

# Only formats of pixels: for an EPS file with the name of a JPEG, Pillow would start Ghostscript.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "DIB")
EXIF_ORIENTATION = 0x0112
# EXIF orientation -> transpose that makes the picture upright. `ImageOps.exif_transpose` also rewrites the EXIF data,
# and fails on some of it.
UPRIGHT_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: bytes | str | Path) -> Image.Image:
    """Read the header of a picture. Raises Pillow's errors, which are of many types."""
    Image.init()
    formats = [name for name in PILLOW_FORMATS if name in Image.OPEN]
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is missing or unreadable."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # struct.error, SyntaxError, TypeError, ...
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an opened picture as upright 8-bit RGB. Raises Pillow's errors for damaged pixels."""
    image.load()
    transpose = UPRIGHT_TRANSPOSES.get(read_orientation(image))
    if transpose is not None:
        image = image.transpose(transpose)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits to 0..255; Pillow clips it, which makes nearly all of it white."""
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        maximum = 1.0 if values.max(initial=0) <= 1.0 else 255.0
    else:
        maximum = 65535.0 if values.max(initial=0) <= 65535 else float(2**31 - 1)
    return Image.fromarray(np.rint(np.clip(values / maximum, 0, 1) * 255).astype(np.uint8), mode="L")
