"""Converts pixels to sRGB by their ICC profile.

Phones store Display P3, cameras and photo editors Adobe RGB and ProPhoto, print files CMYK. Models are trained on
pictures without a profile, which are sRGB. The intent is relative colorimetric with black point compensation, the
default of Photoshop: colours inside sRGB are kept exactly.
"""

from __future__ import annotations

import functools
import io
from contextlib import suppress

import numpy as np
from PIL import Image, ImageCms

COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of the profile, by the mode of the image
SAME_COLOURS = 3  # of 255: a profile that changes no colour by more is a variant of sRGB


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Return an image of mode L, RGB or CMYK in RGB by its ICC profile, which may be missing.

    An image without a profile is returned unchanged. So is one with a damaged profile, with one of another colour
    space than its pixels, and with a variant of sRGB.
    """
    transform = _open_transform(profile, image.mode) if isinstance(profile, bytes) and profile else None
    return image if transform is None else _apply(transform, image)


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = transform.apply(image)
    del converted.info["icc_profile"]
    return converted


@functools.lru_cache(maxsize=16)  # a collection has few profiles; one of CMYK takes about 1 MB
def _open_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != COLOUR_SPACES.get(mode):
            return None
        transform = ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return transform if mode == "CMYK" or _changes_colours(transform, mode) else None
    return None


def _changes_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether the transform of an L or RGB profile changes any of a grid of colours visibly."""
    steps = np.linspace(0, 255, 256 if mode == "L" else 9).astype(np.uint8)
    grid = steps[None] if mode == "L" else np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    image = Image.fromarray(grid)
    before, after = np.asarray(image.convert("RGB"), np.int16), np.asarray(_apply(transform, image), np.int16)
    return bool(np.abs(before - after).max() > SAME_COLOURS)
