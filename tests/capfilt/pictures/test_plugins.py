"""HEIC, AVIF and JPEG XL are read by plug-ins; a message names the one that is missing."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from icc import rgb_profile
from PIL import Image

from blipcore.io import images
from capfilt.pictures.decode import DecodeError, decode_picture, to_jpeg

PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl", "AVIF": "PIL.AvifImagePlugin"}


def encode(kind: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    pytest.importorskip(PLUGINS[kind])
    images._known_formats()
    image = Image.new("RGB", size, (220, 60, 40))
    image.paste((0, 0, 255), (0, size[1] // 2, *size))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", PLUGINS)
def test_pictures_of_phones_and_new_formats_are_stored_as_jpeg(kind: str) -> None:
    stored = to_jpeg(encode(kind, (640, 480)), 256)
    assert stored[1:5] == (256, 192, 640, 480)
    image = decode_picture(stored.data)
    assert image.getpixel((100, 20)) == pytest.approx((220, 60, 40), abs=12)
    assert image.getpixel((100, 170)) == pytest.approx((0, 0, 255), abs=12)


@pytest.mark.parametrize("kind", PLUGINS)
def test_their_colour_profile_and_orientation_are_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_picture(encode(kind, exif=exif.tobytes(), icc_profile=rgb_profile("prophoto")))
    assert image.size == (48, 64)
    if kind != "JXL":  # its encoder ignores the profile
        colours = np.asarray(image, np.int16)
        assert np.abs(colours[32, 40] - (220, 60, 40)).max() > 20, "the profile makes red stronger"


@pytest.mark.parametrize("kind", PLUGINS)
def test_damaged_files_are_decode_errors(kind: str) -> None:
    data = encode(kind)
    for damaged in (data[: len(data) // 2], data[:40], data[:60] + bytes(100)):
        with pytest.raises(DecodeError):
            decode_picture(damaged)


def box(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(100)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (box(b"heic"), r"HEIC; to read it, run: pip install 'capfilt\[heif\]'"),
        (box(b"mif1"), r"HEIC; to read it, run: pip install 'capfilt\[heif\]'"),
        (box(b"avif"), r"AVIF; to read it, run: pip install 'pillow>=11.3'"),
        (b"\xff\x0a" + bytes(100), r"JPEG XL; to read it, run: pip install 'capfilt\[jxl\]'"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), r"JPEG XL; to read it, run: pip install 'capfilt\[jxl\]'"),
        (box(b"isom"), "starts with"),
    ],
)
def test_a_missing_plugin_is_named(data: bytes, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_known_formats", lambda: ["JPEG", "PNG"])
    for read in (decode_picture, to_jpeg):
        with pytest.raises(DecodeError, match=f"not_a_picture: {hint}"):
            read(data)
