"""Pictures to tensors: the evaluation transform, random crops, RandAugment, and decoding."""

import io
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from blipcore.data.transforms import OPERATIONS, EvalTransform, TrainTransform, load_image, rand_augment, random_crop
from blipcore.model.vit import CLIP_MEAN, CLIP_STD, normalise_pixels


@pytest.fixture
def picture() -> Image.Image:
    rows, columns = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([4 * columns, 6 * rows, 2 * (rows + columns)], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_evaluation_is_a_bicubic_square_resize_with_clip_normalisation(picture) -> None:
    read = EvalTransform(32)(picture, None)
    assert read.dtype == torch.uint8 and read.is_contiguous()  # for stacking and copying
    tensor = normalise_pixels(read)
    pixels = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (pixels - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 32, 32)
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_crops_stay_inside_and_keep_scale_and_ratio() -> None:
    rng, areas, ratios = random.Random(0), [], []
    for _ in range(2000):
        left, top, right, bottom = random_crop((320, 280), 0.25, rng)
        assert 0 <= left < right <= 320 and 0 <= top < bottom <= 280
        areas.append((right - left) * (bottom - top) / (320 * 280))
        ratios.append((right - left) / (bottom - top))
    assert 0.24 < min(areas) < 0.3 and 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.35


@pytest.mark.parametrize("size", [(1, 1), (5000, 2), (2, 5000)])
def test_a_picture_too_long_for_any_crop_ratio_is_cropped_in_the_middle(size) -> None:
    left, top, right, bottom = random_crop(size, 1.0, random.Random(0))
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert abs((left + right) - size[0]) <= 1 and abs((top + bottom) - size[1]) <= 1


@pytest.mark.parametrize("randaugment", [False, True])
def test_training_transform_is_a_function_of_its_generator(picture, randaugment) -> None:
    transform = pickle.loads(pickle.dumps(TrainTransform(32, 0.2, randaugment, 0.5)))
    first = [transform(picture, random.Random(seed)) for seed in range(8)]
    again = [transform(picture, random.Random(seed)) for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(tensor.flatten().tolist()) for tensor in first}) == 8
    assert first[0].shape == (3, 32, 32)


def test_flip_probability(picture) -> None:
    square = picture.resize((32, 32))
    plain = EvalTransform(32)(square, None)
    for hflip, expected in ((0.0, plain), (1.0, plain.flip(2))):
        assert torch.equal(TrainTransform(32, 1.0, False, hflip)(square, NoCrop()), expected)


class NoCrop(random.Random):
    """Draws for which the crop is the full square picture."""

    def uniform(self, low, high):
        return high if low == high or high == 1.0 else 0.0


def test_augmentations_change_pictures_with_the_expected_probability(picture) -> None:
    changed = sum(rand_augment(picture, random.Random(seed)) is not picture for seed in range(2000)) / 2000
    # One draw changes the object with probability 1/2 * 7/10; two draws: 1 - 0.65^2.
    assert changed == pytest.approx(1 - 0.65**2, abs=0.03)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometric_operations_equal_opencv(picture, name, sign) -> None:
    cv2 = pytest.importorskip("cv2")
    width, height = picture.size
    matrix = {
        "rotate": cv2.getRotationMatrix2D((width / 2, height / 2), 15 * sign, 1),
        "shear_x": np.float32([[1, 0.15 * sign, 0], [0, 1, 0]]),
        "shear_y": np.float32([[1, 0, 0], [0.15 * sign, 1, 0]]),
        "translate_x": np.float32([[1, 0, 5 * sign], [0, 1, 0]]),
        "translate_y": np.float32([[1, 0, 0], [0, 1, 5 * sign]]),
    }[name]
    expected = cv2.warpAffine(
        np.asarray(picture), matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128)
    )
    operation = next(operation for operation in OPERATIONS if operation.__name__ == f"_{name}")
    candidates = [operation(picture, Coin(side)) for side in (0.0, 0.9)]
    differences = [np.abs(np.asarray(image).astype(int) - expected).max(axis=2) for image in candidates]
    # Away from the uncovered border, where the two libraries blend differently by a pixel, they agree to rounding.
    assert min(float((difference > 3).mean()) for difference in differences) < 0.04
    assert max(float((difference > 3).mean()) for difference in differences) > 0.9  # the other sign is another picture


class Coin(random.Random):
    """A generator that always draws `side`."""

    def __init__(self, side: float) -> None:
        super().__init__(0)
        self.side = side

    def random(self) -> float:
        return self.side


def test_auto_contrast_stretches_a_channel_whose_minimum_is_above_zero() -> None:
    image = Image.fromarray(np.linspace(100, 200, 48).astype(np.uint8).reshape(4, 4, 3))
    operation = next(operation for operation in OPERATIONS if operation.__name__ == "_auto_contrast")
    pixels = np.asarray(operation(image, random.Random(0)))
    assert pixels.min(axis=(0, 1)).tolist() == [0, 0, 0] and pixels.max(axis=(0, 1)).tolist() == [255, 255, 255]
    assert len(np.unique(pixels)) > 10  # the official one would be all 255


def test_pictures_are_loaded_upright(picture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    upright = load_image(encoded(picture, "JPEG", exif=exif, quality=100))
    assert upright.size == (40, 60)
    exif[0x010E] = "a text"
    rotated = encoded(picture, "JPEG", exif=exif, quality=100)
    for tag_type in (1, 6, 7):  # cameras write tags of a wrong type
        offset = rotated.index(b"\x01\x0e\x00\x02") + 3
        assert load_image(rotated[:offset] + bytes([tag_type]) + rotated[offset + 1 :]).tobytes() == upright.tobytes()
    for turn in range(2, 9):
        exif[0x0112] = turn
        turned = encoded(picture, "PNG", exif=exif)
        assert load_image(turned).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).tobytes()


def test_pictures_of_every_mode_become_rgb(picture) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    deep = np.asarray(load_image(encoded(Image.fromarray(ramp))))
    assert deep[0, 0].tolist() == [0, 0, 0] and deep[7, 7].tolist() == [255, 255, 255] and deep[4, 0, 0] > 100
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(load_image(encoded(clear)))[0, 0].tolist() == [255, 255, 255]
    for mode in ("L", "P", "CMYK", "1"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        assert load_image(encoded(picture.convert(mode), kind)).mode == "RGB"


def test_a_damaged_picture_raises_os_error(picture, tmp_path) -> None:
    intact = encoded(picture, "JPEG")
    for damaged in (b"", b"no picture", intact[: len(intact) // 2], encoded(picture)[:60]):
        with pytest.raises(OSError):
            load_image(damaged)
    if features.check("avif"):  # its decoder raises RuntimeError
        intact = encoded(picture, "AVIF")
        data = intact.index(b"mdat") + 4
        with pytest.raises(OSError, match="damaged picture"):
            load_image(intact[:data] + bytes(len(intact) - data))
    with pytest.raises(OSError, match="no known picture format"):  # Pillow would start Ghostscript
        load_image(encoded(picture, "EPS"))
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "absent.jpg")
