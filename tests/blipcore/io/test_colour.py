"""Pictures with an ICC profile come out in sRGB, whatever their mode; all others keep their values."""

from __future__ import annotations

import io

import numpy as np
import pytest
from icc import cmyk_profile, grey_profile, rgb_profile
from PIL import Image, ImageCms

from blipcore.io.colour import to_srgb
from blipcore.io.images import open_picture, upright_rgb

SRGB = ImageCms.createProfile("sRGB")
COLOUR = (220, 60, 40)


def in_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an sRGB image with the values of the profile."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, SRGB, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
    assert converted is not None
    return converted


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def largest_difference(image: Image.Image, colour: tuple[int, ...]) -> int:
    return int(np.abs(np.asarray(image, np.int16) - np.array(colour)).max())


@pytest.mark.parametrize("name", ["display_p3", "adobe_rgb", "prophoto"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})],
)
def test_colours_are_those_that_a_viewer_shows(name: str, kind: str, options: dict[str, object]) -> None:
    profile = rgb_profile(name)
    stored = in_profile(Image.new("RGB", (40, 30), COLOUR), profile)
    assert largest_difference(stored, COLOUR) > 15
    image = upright_rgb(open_picture(encode(stored, kind, icc_profile=profile, **options)))
    assert image.mode == "RGB"
    assert largest_difference(image, COLOUR) <= 4
    assert "icc_profile" not in image.info


def test_transparent_and_palette_pictures_are_converted_too() -> None:
    profile = rgb_profile("prophoto")
    stored = in_profile(Image.new("RGB", (8, 8), COLOUR), profile)
    clear = stored.copy()
    clear.putalpha(Image.new("L", (8, 8), 255))
    clear.putpixel((0, 0), (0, 0, 0, 0))
    image = upright_rgb(open_picture(encode(clear, "PNG", icc_profile=profile)))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert largest_difference(image.crop((1, 1, 8, 8)), COLOUR) <= 2
    palette = upright_rgb(open_picture(encode(stored.quantize(4), "PNG", icc_profile=profile)))
    assert largest_difference(palette, COLOUR) <= 2


def test_grey_profiles_apply_to_grey_of_8_and_16_bits_and_with_alpha() -> None:
    profile = grey_profile(1.0)  # linear light: 55 of 255 is shown as about half
    for image in (
        Image.new("L", (4, 4), 55),
        Image.new("LA", (4, 4), (55, 255)),
        Image.fromarray(np.full((4, 4), 55 * 257, np.uint16)),
    ):
        colours = np.asarray(upright_rgb(open_picture(encode(image, "PNG", icc_profile=profile))))
        assert 125 <= colours.min() == colours.max() <= 132


def test_cmyk_is_converted_by_its_profile() -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = encode(image, "JPEG", quality=95, icc_profile=cmyk_profile())
    with_profile = upright_rgb(open_picture(data)).getpixel((8, 8))
    assert with_profile != pytest.approx((0, 255, 255), abs=40)
    assert with_profile == pytest.approx((131, 177, 216), abs=3)  # Lab (70, -8.4, -25.2)
    assert upright_rgb(open_picture(encode(image, "JPEG", quality=95))).getpixel((8, 8)) == pytest.approx(
        (0, 255, 255), abs=3
    )


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(SRGB).tobytes(),
        b"no profile",
        rgb_profile("prophoto")[:200],
        rgb_profile("prophoto")[:128] + bytes(400),
        grey_profile(1.0),
        cmyk_profile(),
    ],
    ids=["srgb", "text", "cut", "zeros", "grey", "cmyk"],
)
def test_a_profile_that_is_srgb_damaged_or_of_another_space_changes_nothing(profile: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "PNG", icc_profile=profile)
    assert np.array_equal(np.asarray(upright_rgb(open_picture(data))), pixels)


def test_an_image_without_a_profile_is_the_same_object() -> None:
    image = Image.new("RGB", (4, 4))
    assert to_srgb(image, None) is image
    assert upright_rgb(image) is image


def test_an_image_is_converted_once() -> None:
    profile = rgb_profile("display_p3")
    stored = in_profile(Image.new("RGB", (8, 8), COLOUR), profile)
    once = upright_rgb(open_picture(encode(stored, "PNG", icc_profile=profile)))
    assert upright_rgb(once) is once


def test_strips_of_a_large_picture_are_converted_as_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 65536, (50, 40), dtype=np.uint16))
    floats = Image.fromarray(rng.random((50, 40), dtype=np.float32) * 200)
    colours = Image.fromarray(rng.integers(0, 256, (50, 40, 4), dtype=np.uint8), "RGBA")
    pictures = [
        encode(grey, "PNG"),
        encode(floats, "TIFF"),
        encode(colours, "PNG"),
        encode(colours, "PNG", icc_profile=rgb_profile("prophoto")),
        encode(colours.convert("RGB").quantize(16), "PNG", transparency=3),
        encode(colours.convert("CMYK"), "JPEG"),
    ]
    whole = [upright_rgb(open_picture(data)).tobytes() for data in pictures]
    monkeypatch.setattr("blipcore.io.images.STRIP_PIXELS", 40 * 7)
    assert [upright_rgb(open_picture(data)).tobytes() for data in pictures] == whole
