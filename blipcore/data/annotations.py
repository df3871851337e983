"""Annotation JSON files in BLIP's formats -> one record a picture.

In: a list of rows `{"image": path, "caption": str or [str, ...], "image_id": anything}` as the COCO (Karpathy),
Flickr30k and pretraining files have it, one row a caption or one row a picture. Out: pictures in order of first
appearance, each with all its texts.
"""

import json
from pathlib import Path
from typing import TypedDict


class CaptionedImage(TypedDict):
    """One picture of an annotation file: `image_id` counts pictures from 0, `key` is the path as the file gives it."""

    key: str
    image: Path
    texts: list[str]
    image_id: int


def read_captions(json_path: str | Path, image_root: str | Path | None = None) -> list[CaptionedImage]:
    """Read a caption or retrieval file; image paths are relative to `image_root`, or else to the file's folder."""
    json_path = Path(json_path)
    rows = _read_rows(json_path)
    root = Path(image_root) if image_root is not None else json_path.parent
    pictures: dict[object, CaptionedImage] = {}
    for number, row in enumerate(rows):
        image, texts, identity = _parse(row, f"{json_path}, row {number}")
        if identity not in pictures:
            pictures[identity] = {"key": image, "image": root / image, "texts": [], "image_id": len(pictures)}
        pictures[identity]["texts"].extend(texts)
    return list(pictures.values())


def _read_rows(path: Path) -> list[object]:
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"annotation file {path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"annotation file {path} must hold a list of rows, not a {type(rows).__name__}")
    if not rows:
        raise ValueError(f"annotation file {path} holds no rows")
    return rows


def _parse(row: object, where: str) -> tuple[str, list[str], object]:
    """Split a row into image path, texts and what tells pictures apart (image_id where given, else the path)."""
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a row must be an object with "image" and "caption", not a {type(row).__name__}')
    image, caption = row.get("image"), row.get("caption")
    if not isinstance(image, str) or not image:
        raise ValueError(f'{where}: "image" must be a path, found {image!r}')
    texts = [caption] if isinstance(caption, str) else caption
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'{where}: "caption" must be a text or a list of texts, found {caption!r}')
    identity = row.get("image_id", image)
    if not isinstance(identity, str | int):
        raise ValueError(f'{where}: "image_id" must be a number or a string, found {identity!r}')
    return image, texts, identity
