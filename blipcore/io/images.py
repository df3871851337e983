"""How a picture is read: upright, 8-bit RGB, transparency on white. Without torch.

One rule for all who look at a picture: what a captioner has described, a filter judged and a report shown is what a
model is trained on.
"""

import io
from pathlib import Path

from PIL import Image

# Pictures of pixels only: Pillow would start Ghostscript for an EPS that calls itself a JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "DIB")
EXIF_ORIENTATION = 0x0112
# What makes a picture upright; `ImageOps.exif_transpose` also writes its EXIF anew, and stumbles over parts of it.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: bytes | str | Path) -> Image.Image:
    """The header of a picture of one of FORMATS, its pixels not read yet; errors are Pillow's, of many kinds."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known)


def orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8; 1, upright, where it says nothing or cannot be read: the picture itself is fine."""
    try:
        found = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # struct.error, SyntaxError, TypeError, ...
        return 1
    return found if found in range(1, 9) else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture as it was opened -> upright 8-bit RGB, transparency on white; errors of its pixels are Pillow's too."""
    image.load()
    turn = TURNS.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, whole range to 0..255; Pillow's own conversion clips at 255, which is almost white."""
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1.0 else 255.0
    else:
        top = 65535.0 if values.max(initial=0) <= 65535 else float(2**31 - 1)
    return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8), mode="L")
