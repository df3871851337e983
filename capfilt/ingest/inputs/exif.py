"""Orientation of pictures that img2dataset has encoded anew.

img2dataset drops the EXIF of such a picture without rotating it, and stores the EXIF as JSON in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# EXIF orientations by the names of `exifread`.
ORIENTATIONS = {
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}


def img2dataset_orientation(metadata: Mapping[str, Any]) -> int | None:
    """Return the original EXIF orientation in img2dataset's `metadata`, None if upright or unknown."""
    try:
        return ORIENTATIONS.get(json.loads(metadata["exif"])["Image Orientation"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
