"""Converts PIL images, paths, bytes, open files, numpy arrays and torch tensors to RGB images."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blipcore.data.transforms import load_image
from blipcore.io.images import upright_rgb

# One picture, or any iterable of pictures.
Pictures = Any
CHANNELS = (1, 3, 4)
FORMS = "a PIL image, a path, the bytes of a file, a numpy array (H, W, 3) or a torch tensor (3, H, W)"


def iterate_pictures(pictures: Pictures) -> Iterator[Image.Image]:
    """Yield the pictures as upright 8-bit RGB, decoded one by one; a single picture is a list of one.

    Raises TypeError, ValueError or OSError for one that is no picture, with its position.
    """
    items: Iterable[Any] = [pictures] if _is_single(pictures) else pictures
    try:
        iterator = iter(items)
    except TypeError:
        raise TypeError(f"A picture is {FORMS}, not a {type(pictures).__name__}.") from None
    for position, item in enumerate(iterator):
        try:
            yield to_image(item)
        except FileNotFoundError:
            raise
        except (TypeError, ValueError, OSError) as error:
            kind = next(kind for kind in (TypeError, ValueError, OSError) if isinstance(error, kind))
            raise kind(f"Picture {position}: {error}") from error


def to_image(picture: Any) -> Image.Image:
    """Return one picture as an upright 8-bit RGB image.

    Arrays are uint8, or floats from 0 to 1; numpy arrays (H, W, C), tensors (C, H, W), both also grey (H, W).
    """
    if isinstance(picture, Image.Image):
        return upright_rgb(picture)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return load_image(bytes(picture))
    if isinstance(picture, (str, Path)):
        if "://" in str(picture):
            raise ValueError(f"{picture} is a URL, which is not opened here: download it, and pass its path or bytes.")
        if not Path(picture).is_file():
            raise FileNotFoundError(f"No picture at {picture}.")
        return load_image(Path(picture))
    if isinstance(picture, Mapping) and {"bytes", "path"} & set(picture):  # a cell of Hugging Face datasets
        return to_image(picture.get("bytes") or picture.get("path"))
    if isinstance(picture, torch.Tensor):
        values = picture.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        return _from_array(values.numpy(), channels_first=True)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, channels_first=False)
    if hasattr(picture, "read"):
        return load_image(picture.read())
    raise TypeError(f"a picture is {FORMS}, not a {type(picture).__name__}.")


def _is_single(pictures: Any) -> bool:
    if isinstance(pictures, (np.ndarray, torch.Tensor)):
        return pictures.ndim < 4 and pictures.dtype != object
    plain = (Image.Image, str, Path, bytes, bytearray, memoryview, Mapping)
    return isinstance(pictures, plain) or hasattr(pictures, "read")


def _from_array(values: np.ndarray, channels_first: bool) -> Image.Image:
    """Return the picture in an array; the axis of 1, 3 or 4 channels may be the first or the last."""
    shape = values.shape
    if values.ndim == 3:
        first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
        if first and (channels_first or not last):
            values = values.transpose(1, 2, 0)
        elif not last:
            raise ValueError(f"an array of the shape {shape} is no picture: it needs 1, 3 or 4 channels.")
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"an array of the shape {shape} is no picture: it needs height, width and channels.")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"floats from {values.min():g} to {values.max():g} are no pixels: pass floats from 0 to 1 or uint8, "
                "before any normalisation."
            )
        values = np.rint(values * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise ValueError(f"an array of {values.dtype} is no picture: pass uint8, or floats from 0 to 1.")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return upright_rgb(Image.fromarray(np.ascontiguousarray(values)))
