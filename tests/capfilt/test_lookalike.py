"""The same picture at another size or quality is found again; another picture of the same kind is not."""

import io
import random

from PIL import Image, ImageDraw, ImageFilter

from capfilt.lookalike import Looks


def photograph(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Soft blobs of light and shade: like a photograph to a hash of 8 x 8 cells."""
    rng, image = random.Random(seed), Image.new("RGB", (64, 48), "gray")
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, r = rng.randrange(64), rng.randrange(48), rng.randrange(4, 16)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image.filter(ImageFilter.GaussianBlur(1)).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_resized_and_recompressed_pictures_are_found_again() -> None:
    looks = Looks(photograph(seed) for seed in range(50))
    assert len(looks) == 50
    for seed in range(50):
        assert jpeg(photograph(seed).resize((200, 150)), 30) in looks


def test_other_pictures_are_not() -> None:
    looks = Looks(photograph(seed) for seed in range(50))
    assert not [seed for seed in range(1000, 1500) if photograph(seed) in looks]


def test_flat_pictures_of_one_motif_differ_by_its_place() -> None:
    def scene(x: int) -> Image.Image:
        image = Image.new("RGB", (96, 96), "navy")
        ImageDraw.Draw(image).rectangle((x, 30, x + 30, 60), fill="white")
        return image

    looks = Looks([scene(5)])
    assert jpeg(scene(5), 40) in looks and scene(55) not in looks


def test_nothing_looks_like_a_picture_of_no_set() -> None:
    assert photograph(1) not in Looks()
