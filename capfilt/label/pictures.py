"""Reads the pictures of a shard set one by one, as JPEGs for a browser."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from PIL import Image

from blipcore.io.tar_reader import TarReader
from capfilt.pictures.decode import MAX_PIXELS, decode_picture
from capfilt.shards.shard_set import ShardSet

# Pixels of the longer side.
SIDE = 1024
# JPEGs in memory: the page loads the pictures before and after the current one.
MAX_PICTURES = 64


class JpegReader:
    """Pictures by shard and key; any number of threads may read."""

    def __init__(self, images: ShardSet) -> None:
        self._tars = TarReader(locate=images.tar)
        self._max_pixels = max(MAX_PIXELS, images.max_pixels() or 0)
        self._jpegs: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: str, key: str) -> bytes:
        """Return a picture as a JPEG in sRGB. Raises DecodeError or OSError."""
        with self._lock:
            jpeg = self._jpegs.get((shard, key))
            if jpeg is None:
                data = self._tars.read_image(shard, key)
        if jpeg is None:
            jpeg = _to_jpeg(data, self._max_pixels)
        with self._lock:
            self._jpegs[shard, key] = jpeg
            self._jpegs.move_to_end((shard, key))
            while len(self._jpegs) > MAX_PICTURES:
                self._jpegs.popitem(last=False)
        return jpeg


def _to_jpeg(data: bytes, max_pixels: int) -> bytes:
    image = decode_picture(data, max_pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
