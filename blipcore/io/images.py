"""Opens pictures as upright 8-bit sRGB, with transparent parts on white.

Captioner, filter, report and trainer see the same pixels through these functions. torch is not imported.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from blipcore.io.colour import to_srgb
from blipcore.io.jpeg_xl import CODESTREAM, CONTAINER, jpeg_xl_size

# Only formats of pixels: for an EPS file with the name of a JPEG, Pillow would start Ghostscript.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "DIB", "HEIF", "JXL")
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
STRIP_PIXELS = 1 << 20  # converted at a time, so that a large picture needs little more than its pixels and the result


def open_picture(source: bytes | str | Path) -> Image.Image:
    """Read the header of a picture. Raises Pillow's errors, which are of many types."""
    formats = _known_formats()
    if isinstance(source, bytes) and "JXL" in formats:  # Pillow would check the size after decoding
        width, height = jpeg_xl_size(source) or (0, 0)
        if width * height > 2 * (Image.MAX_IMAGE_PIXELS or width * height):
            raise Image.DecompressionBombError(f"{width} x {height} pixels, which may be a decompression bomb")
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


@functools.cache
def _known_formats() -> list[str]:
    """Return the formats that can be read, those of installed plug-ins included."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  # registers itself
    return [name for name in PILLOW_FORMATS if name in Image.OPEN]


def missing_decoder(start: bytes) -> str | None:
    """Return the format that the first 16 bytes of a picture show, and how to read it; None if it is another."""
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis"):
        name, formats, package = "AVIF", "AVIF", "pillow>=11.3"
    elif brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"):
        name, formats, package = "HEIC", "HEIF", "capfilt[heif]"
    elif start.startswith((CODESTREAM, CONTAINER)):
        name, formats, package = "JPEG XL", "JXL", "capfilt[jxl]"
    else:
        return None
    return None if formats in _known_formats() else f"{name}; to read it, run: pip install '{package}'"


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is missing or unreadable."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # struct.error, SyntaxError, TypeError, ...
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an opened picture as upright 8-bit sRGB. Raises Pillow's errors for damaged pixels."""
    image.load()
    transpose = UPRIGHT_TRANSPOSES.get(read_orientation(image))
    if transpose is not None:
        image = image.transpose(transpose)
    if image.mode == "RGB" and not image.info.keys() & {"icc_profile", "transparency"}:
        return image
    maximum = _grey_maximum(image) if _is_deep_grey(image) else 0.0
    if image.width * image.height <= STRIP_PIXELS:
        return _to_rgb(image, maximum)
    result = Image.new("RGB", image.size)
    for strip, top in _strips(image):
        result.paste(_to_rgb(strip, maximum), (0, top))
    return result


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Yield (part, top row) of an image."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))), top


def _to_rgb(image: Image.Image, maximum: float) -> Image.Image:
    """Convert an image of any mode to 8-bit sRGB on white; grey of more than 8 bits is divided by `maximum`."""
    profile = image.info.get("icc_profile")
    if maximum:
        return to_srgb(_scale_grey(image, maximum), profile).convert("RGB")
    if not image.has_transparency_data:
        colours = image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
        return to_srgb(colours, profile).convert("RGB")
    rgba = image.convert("RGBA")
    colours = image.convert("L") if image.mode in ("L", "LA", "La") else rgba.convert("RGB")
    converted = to_srgb(colours, profile)
    if converted is not colours:
        converted.putalpha(rgba.getchannel("A"))
        rgba = converted
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _grey_maximum(image: Image.Image) -> float:
    """Return the value of white in grey of more than 8 bits."""
    import numpy as np

    if image.mode.startswith("I;16"):
        return 65535.0
    largest = np.max([np.asarray(strip).max(initial=0) for strip, _ in _strips(image)])
    if image.mode == "F":
        return 1.0 if largest <= 1.0 else 255.0
    return 65535.0 if largest <= 65535 else float(2**31 - 1)


def _scale_grey(image: Image.Image, maximum: float) -> Image.Image:
    """Scale grey of more than 8 bits to 0..255; Pillow clips it, which makes nearly all of it white."""
    import numpy as np

    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    return Image.fromarray(np.rint(np.clip(values / maximum, 0, 1) * 255).astype(np.uint8), mode="L")
