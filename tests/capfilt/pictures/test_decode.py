"""Pictures of every format are decoded to upright RGB as a viewer shows them, or raise with a reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capfilt.pictures.decode import DecodeError, decode_picture, difference_hash, to_jpeg


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """Return a 32 x 24 image: upper half red, lower left green, lower right blue."""
    image = Image.new("RGB", (32, 24), "red")
    image.paste((0, 255, 0), (0, 12, 16, 24))
    image.paste((0, 0, 255), (16, 12, 32, 24))
    return image


def large_png(width: int, height: int) -> bytes:
    """Return the start of a PNG of this size, in black and white."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\1\0IDAT"
    )


def is_near(pixel: Any, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = corners() if inverse is None else corners().transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_picture(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    assert image.size == (32, 24)
    assert is_near(image.getpixel((16, 3)), (255, 0, 0))
    assert is_near(image.getpixel((4, 20)), (0, 255, 0))
    assert is_near(image.getpixel((28, 20)), (0, 0, 255))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(decode_picture(encode(Image.fromarray(ramp), "PNG")))
    assert grey.shape == (16, 16, 3)
    assert np.array_equal(grey[..., 0], np.rint(ramp / 257).astype(np.uint8))
    tiff = decode_picture(encode(Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)), "TIFF"))
    assert np.asarray(tiff)[..., 1].mean() == pytest.approx(127.5, abs=0.5)


def test_transparent_pixels_become_white() -> None:
    image = corners().convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    assert decode_picture(encode(image, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    decoded = decode_picture(encode(palette, "PNG", transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((2, 2)) == (10, 20, 30)
    grey = Image.new("LA", (4, 4), (100, 255))
    grey.putpixel((1, 1), (0, 0))
    assert decode_picture(encode(grey, "PNG")).getpixel((1, 1)) == (255, 255, 255)
    assert decode_picture(encode(grey, "PNG")).getpixel((2, 2)) == (100, 100, 100)


def test_other_modes_and_formats() -> None:
    assert is_near(
        decode_picture(encode(corners().convert("CMYK"), "JPEG", quality=95)).getpixel((16, 3)), (255, 0, 0), 20
    )
    assert decode_picture(encode(corners().convert("L"), "JPEG")).mode == "RGB"
    assert decode_picture(encode(corners().convert("1"), "PNG")).mode == "RGB"
    assert is_near(decode_picture(encode(corners(), "WEBP", lossless=True)).getpixel((4, 20)), (0, 255, 0))
    frames = [corners(), Image.new("RGB", (32, 24), "black")]
    animation = decode_picture(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert is_near(animation.getpixel((4, 20)), (0, 255, 0))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "not_a_picture"),
        (b"\x00" * 100, "not_a_picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_a_picture"),
        (encode(corners(), "JPEG")[:-40], "truncated"),
        (encode(corners(), "PNG")[:-30], "truncated"),
    ],
)
def test_unreadable_pictures_raise_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_picture(data)
    assert caught.value.reason == reason


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_a_decode_error_or_give_a_picture() -> None:
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        intact = encode(corners(), format)
        for _ in range(60):
            data = bytearray(intact[: rng.integers(1, len(intact) + 1)])
            data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
            try:
                assert decode_picture(bytes(data)).mode == "RGB"
            except DecodeError as error:
                assert error.reason in {"not_a_picture", "truncated", "corrupt", "too_many_pixels"}


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = large_png(30_000, 30_000)
    with warnings.catch_warnings(), pytest.raises(DecodeError) as caught:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decode_picture(bomb)
    assert caught.value.reason == "too_many_pixels"
    with pytest.raises(DecodeError, match=r"32 x 24 is more than 767 pixels \(the limit is the setting max_pixels\)"):
        decode_picture(encode(corners(), "PNG"), max_pixels=32 * 24 - 1)


def test_the_pixel_limit_can_be_raised_above_that_of_pillow() -> None:
    photo = large_png(20_000, 10_000)  # Pillow refuses more than 179 megapixels
    with pytest.raises(DecodeError, match="truncated"):
        decode_picture(photo, max_pixels=200_000_000)
    with pytest.raises(DecodeError, match=r"too_many_pixels: .*setting max_pixels"):
        decode_picture(photo)


def test_to_jpeg_keeps_the_bytes_of_an_intact_small_jpeg() -> None:
    data = encode(corners(), "JPEG")
    assert to_jpeg(data, 512) == (data, 32, 24, 32, 24, difference_hash(data))
    grey = encode(corners().convert("L"), "JPEG")
    assert to_jpeg(grey, 0).data == grey


def test_damage_is_found_without_a_full_decode() -> None:
    """The bytes of a JPEG are kept if and only if Pillow can decode all of it."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}):
        intact = encode(noise, "JPEG", **options)
        for _ in range(25):
            data = bytearray(intact[: int(rng.integers(len(intact) // 2, len(intact) + 1))])
            data[int(rng.integers(300, len(data)))] ^= int(rng.integers(1, 256))
            try:
                decode_picture(bytes(data))
            except DecodeError as error:
                with pytest.raises(DecodeError) as caught:
                    to_jpeg(bytes(data))
                assert caught.value.reason == error.reason
            else:
                assert to_jpeg(bytes(data)).data == data


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_to_jpeg_converts_other_formats(format: str) -> None:
    stored = to_jpeg(encode(corners(), format), 512)
    assert stored[1:5] == (32, 24, 32, 24)
    assert stored.data[:3] == b"\xff\xd8\xff"
    assert is_near(decode_picture(stored.data).getpixel((4, 20)), (0, 255, 0), 60)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_to_jpeg_rotates_and_shrinks(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    large = corners().resize((1280, 960), Image.Resampling.NEAREST).transpose(Image.Transpose.ROTATE_90)
    stored = to_jpeg(encode(large, format, exif=exif), 256)
    assert stored[1:5] == (256, 192, 1280, 960)
    image = decode_picture(stored.data)
    assert image.size == (256, 192)
    assert is_near(image.getpixel((128, 20)), (255, 0, 0))
    assert is_near(image.getpixel((40, 150)), (0, 255, 0))
    assert is_near(image.getpixel((200, 150)), (0, 0, 255))
    rotated = to_jpeg(encode(large, format, exif=exif))
    assert rotated[1:5] == (1280, 960, 1280, 960)
    assert Image.open(io.BytesIO(rotated.data)).getexif().get(0x0112, 1) == 1


def test_to_jpeg_decodes_all_pixels_and_is_deterministic() -> None:
    data = encode(corners().resize((640, 480)), "JPEG")
    for max_side in (0, 64):
        with pytest.raises(DecodeError, match="truncated"):
            to_jpeg(data[:-400], max_side)
    assert to_jpeg(data, 100) == to_jpeg(data, 100)
    assert to_jpeg(encode(Image.new("RGB", (2000, 3)), "PNG"), 100)[1:3] == (100, 1)
