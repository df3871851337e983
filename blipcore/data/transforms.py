"""BLIP's training and evaluation transforms, with PIL and torch alone.

A transform returns a uint8 tensor (3, S, S), a quarter of the size of floats; the image encoder normalises it. All
random choices come from the caller's `random.Random`, so a sample is a function of its position in the stream.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from blipcore.io.images import open_picture, upright_rgb

RATIOS = (3 / 4, 4 / 3)  # width : height of the training crop
AUGMENTATIONS = 2  # operations drawn per picture, with replacement
AUGMENT_PROBABILITY = 0.5  # of applying a drawn operation
GREY = (128, 128, 128)  # fills the area that geometric operations uncover

Transform = Callable[[Image.Image, random.Random | None], torch.Tensor]


def load_image(source: bytes | str | Path) -> Image.Image:
    """Decode a picture to upright 8-bit RGB with transparency on white. Raises OSError if it cannot be decoded.

    JPEGs are decoded at full size: shrinking 1600 pixels to 384 in the decoder (`Image.draft`) changes values by 2 of
    255 on average and by up to 30.
    """
    try:
        return upright_rgb(open_picture(source))
    except UnidentifiedImageError:
        raise OSError("no known picture format") from None
    except OSError:
        raise
    except Exception as error:  # PIL raises ValueError, SyntaxError, struct.error, RuntimeError ...
        raise OSError(f"damaged picture: {error}") from error


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class EvalTransform:
    """Resizes to a square, bicubic, without keeping the aspect ratio."""

    image_size: int

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> torch.Tensor:
        size = (self.image_size, self.image_size)
        return _to_tensor(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, horizontal flip with probability `hflip`, then optionally RandAugment."""

    image_size: int
    min_scale: float  # smallest share of the area that a crop keeps (official: 0.2, in finetuning 0.5)
    randaugment: bool = True
    hflip: float = 0.5

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> torch.Tensor:
        rng = rng or random.Random()
        box = random_crop(image.size, self.min_scale, rng)
        # One call for cropping and resizing takes half the time of two.
        image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, box=box)
        if rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.randaugment:
            image = rand_augment(image, rng)
        return _to_tensor(image)


def random_crop(size: tuple[int, int], min_scale: float, rng: random.Random) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) with an area of `min_scale` to 1 of the picture and a ratio of 3/4 to 4/3.

    If ten draws fail, as on very long pictures, return the largest centred box of an allowed ratio.
    """
    width, height = size
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    for _ in range(10):
        area = width * height * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * RATIOS[1])))
    h = min(height, max(1, round(width / RATIOS[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def rand_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """Apply BLIP's RandAugment: two of ten operations at magnitude 5 of 10, each with probability one half.

    The official AutoContrast overflows and whitens channels whose minimum is above 0; this one does not.
    """
    for _ in range(AUGMENTATIONS):
        operation = rng.choice(OPERATIONS)
        if rng.random() < AUGMENT_PROBABILITY:
            image = operation(image, rng)
    return image


def _identity(image: Image.Image, rng: random.Random) -> Image.Image:
    return image


def _auto_contrast(image: Image.Image, rng: random.Random) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, rng: random.Random) -> Image.Image:
    return ImageOps.equalize(image)


def _rotate(image: Image.Image, rng: random.Random) -> Image.Image:
    angle = math.radians(15.0) * _sign(rng)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = image.width / 2, image.height / 2
    return _affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def _shear_x(image: Image.Image, rng: random.Random) -> Image.Image:
    return _affine(image, (1, 0.15 * _sign(rng), 0, 0, 1, 0))


def _shear_y(image: Image.Image, rng: random.Random) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.15 * _sign(rng), 1, 0))


def _translate_x(image: Image.Image, rng: random.Random) -> Image.Image:
    return _affine(image, (1, 0, 5 * _sign(rng), 0, 1, 0))  # 5 pixels for any size, as official


def _translate_y(image: Image.Image, rng: random.Random) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 5 * _sign(rng)))


def _sign(rng: random.Random) -> int:
    return 1 if rng.random() < 0.5 else -1


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Apply a matrix from output to input coordinates; pixel centres are integers, as in OpenCV (PIL: halves)."""
    a, b, c, d, e, f = matrix
    shifted = (a, b, c + 0.5 - 0.5 * (a + b), d, e, f + 0.5 - 0.5 * (d + e))
    return image.transform(image.size, Image.Transform.AFFINE, shifted, Image.Resampling.BILINEAR, fillcolor=GREY)


# The official Brightness and Sharpness have a factor of 1 at magnitude 5 and change nothing, like Identity.
OPERATIONS = (
    *(_identity, _identity, _identity),
    *(_auto_contrast, _equalize, _rotate, _shear_x, _shear_y, _translate_x, _translate_y),
)
