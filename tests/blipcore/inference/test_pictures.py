"""Pictures in all forms become the same RGB image; what is no picture is named with its position."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blipcore.inference.pictures import iterate_pictures

PIXELS = np.random.RandomState(0).randint(0, 255, (6, 8, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)


def png() -> bytes:
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path / "a.png"


CHANNELS_FIRST = PIXELS.transpose(2, 0, 1)
FORMS: dict[str, Any] = {
    "PIL": IMAGE,
    "bytes": png(),
    "bytearray": bytearray(png()),
    "memoryview": memoryview(png()),
    "open file": io.BytesIO(png()),
    "datasets": {"bytes": png(), "path": None},
    "numpy": PIXELS,
    "numpy channels first": CHANNELS_FIRST,
    "numpy floats": PIXELS / 255,
    "numpy float32": (PIXELS / 255).astype(np.float32),
    "numpy view": PIXELS[::-1][::-1],
    "tensor": torch.from_numpy(CHANNELS_FIRST.copy()),
    "tensor channels last": torch.from_numpy(PIXELS),
    "tensor floats": torch.from_numpy(CHANNELS_FIRST / 255),
    "tensor with gradient": torch.from_numpy(CHANNELS_FIRST / 255).requires_grad_(),
    "numpy with alpha": np.dstack([PIXELS, np.full((6, 8), 255, np.uint8)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_is_the_same_image(form: str) -> None:
    for pictures in (FORMS[form], [FORMS[form]]):
        if form == "open file":
            pictures = io.BytesIO(png()) if pictures is FORMS[form] else [io.BytesIO(png())]
        [image] = iterate_pictures(pictures)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), PIXELS)


def test_a_path_is_opened_as_string_or_path(path: Path) -> None:
    for pictures in (path, str(path), [path, str(path)]):
        assert all(np.array_equal(np.asarray(image), PIXELS) for image in iterate_pictures(pictures))


@pytest.mark.parametrize(
    "grey", [PIXELS[:, :, 0], PIXELS[:, :, :1], torch.from_numpy(PIXELS[:, :, 0]), PIXELS[:, :, 0] / 255]
)
def test_grey_arrays_are_pictures(grey: Any) -> None:
    [image] = iterate_pictures(grey)
    assert np.array_equal(np.asarray(image)[:, :, 1], PIXELS[:, :, 0])


def test_batches_and_generators_are_iterated_one_by_one() -> None:
    batches: list[Any] = [
        np.stack([PIXELS, PIXELS]),
        torch.from_numpy(np.stack([CHANNELS_FIRST, CHANNELS_FIRST])),
        (IMAGE for _ in range(2)),
        (IMAGE, PIXELS),
        {1: IMAGE, 2: PIXELS}.values(),
    ]
    for batch in batches:
        assert [image.size for image in iterate_pictures(batch)] == [(8, 6)] * 2
    opened = []
    endless = (opened.append(number) or IMAGE for number in range(10**9))
    next(iterate_pictures(endless))
    assert opened == [0]


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (None, TypeError, "A picture is a PIL image, a path, .*, not a NoneType"),
        (7, TypeError, "not a int"),
        ([IMAGE, None], TypeError, "Picture 1: a picture is .*, not a NoneType"),
        (["https://a.org/b.jpg"], ValueError, "Picture 0: https://a.org/b.jpg is a URL, which is not opened here"),
        ("s3://bucket/b.jpg", ValueError, "is a URL"),
        ("missing.jpg", FileNotFoundError, "No picture at missing.jpg"),
        (b"not a picture", OSError, "Picture 0: no known picture format"),
        (b"", OSError, "Picture 0: no known picture format"),
        (png()[:40], OSError, "Picture 0: "),
        (np.zeros((6, 8, 5), np.uint8), ValueError, r"shape \(6, 8, 5\) is no picture: it needs 1, 3 or 4 channels"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "is no picture: it needs height, width and channels"),
        (np.zeros(8, np.uint8), ValueError, "is no picture: it needs height"),
        (PIXELS.astype(np.int64), ValueError, "an array of int64 is no picture: pass uint8"),
        (PIXELS.astype(np.uint16), ValueError, "an array of uint16"),
        (PIXELS / 100.0, ValueError, r"floats from \S+ to 2\S* are no pixels"),
        (PIXELS / 255 - 0.5, ValueError, r"floats from -0\.48\S* to .* before any normalisation"),
        (np.full((2, 2, 3), np.nan), ValueError, "are no pixels"),
        ({"image": IMAGE}, TypeError, "not a dict"),
        (object(), TypeError, "not a object"),
    ],
)
def test_what_is_no_picture_is_named(picture: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(iterate_pictures(picture))
