"""Annotation files of captioning and retrieval -> one record a picture.

In, told apart by what they hold:

    COCO (Karpathy), Flickr30k, pre-training    [{"image": path, "caption": text or [text, ...], "image_id": any}, ...]
    NoCaps                                      [{"image": path, "img_id": number}, ...]
    COCO's and NoCaps' own annotation files     {"images": [{"id", "file_name", "domain"}, ...],
                                                 "annotations": [{"image_id", "caption"}, ...]}

The lists may be `.jsonl`, and of any length. Out: pictures in order of first appearance, each with all its texts.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from blipcore.io.json_rows import BEGIN, Place, first_character, read_rows

PART_ROWS = 50_000  # of a list, in memory at a time
COCO_NUMBER = re.compile(r"COCO_\w+_(\d{12})\.\w+$")  # in the names of COCO's pictures: what its servers call them


class CaptionedImage(TypedDict):
    """One picture of an annotation file: `key` is the path as the file gives it, `image_id` what it calls the picture.

    `image_id` is the file's own (image_id, img_id or id), else COCO's number in the file name, else the path.
    """

    key: str
    image: Path
    texts: list[str]
    image_id: int | str
    domain: NotRequired[str]  # NoCaps: in-domain, near-domain or out-domain


class Part(NamedTuple):
    """Some neighbouring rows of a file: where they begin, the number of the row after them, how many pictures."""

    start: Place
    stop: int
    pictures: int


def read_captions(
    path: str | Path, image_root: str | Path | None = None, need_texts: bool = True, part: Part | None = None
) -> list[CaptionedImage]:
    """Read a caption or retrieval file, or a `part` of it; image paths are relative to `image_root`, else to the file.

    FileNotFoundError, or ValueError with file and row. Without `need_texts` a picture may have none, as in NoCaps.
    """
    pictures: dict[tuple[int | str, str], CaptionedImage] = {}
    for _, row in _rows(Path(path), image_root, need_texts, part):
        if _picture_of(row) in pictures:
            pictures[_picture_of(row)]["texts"].extend(row["texts"])
        else:
            pictures[_picture_of(row)] = row
    return list(pictures.values())


def split_captions(path: str | Path, rows: int = PART_ROWS) -> list[Part]:
    """Parts of about `rows` rows for `read_captions`, so that nobody has to hold a long list; reads the file once.

    Neighbouring rows of one picture stay together; where it comes again in another part it counts as another picture.
    A COCO annotation file, whose texts stand apart from its pictures, is a single part.
    """
    path = Path(path)
    parts: list[Part] = []
    start, stop, pictures, last = BEGIN, 0, set(), None
    for place, row in _rows(path, None, True, None):
        picture = _picture_of(row)
        if place.offset and place.number - start.number >= rows and picture != last:
            parts.append(Part(start, stop, len(pictures)))
            start, pictures = place, set()
        pictures.add(picture)
        stop, last = place.number + 1, picture
    return [*parts, Part(start, stop, len(pictures))]


def _picture_of(row: CaptionedImage) -> tuple[int | str, str]:
    """What rows of one picture agree in: lists put together from several data sets may use an id twice."""
    return row["image_id"], row["key"]


def _rows(
    path: Path, image_root: str | Path | None, need_texts: bool, part: Part | None
) -> Iterator[tuple[Place, CaptionedImage]]:
    """Every row with its place and the texts it brings; at least one, or ValueError."""
    root = Path(image_root) if image_root is not None else path.parent
    if path.suffix.lower() == ".json" and first_character(path) == "{":
        rows: Iterator[tuple[Place, object]] = ((Place(n), row) for n, row in enumerate(_coco_rows(path)))
    else:
        rows = read_rows(path, part.start if part else BEGIN)
    place = None
    for place, row in rows:
        if part and place.number >= part.stop:
            return
        yield place, _picture(row, path, place.number, root, need_texts)
    if place is None:
        raise ValueError(f"annotation file {path} holds no rows")


def _coco_rows(path: Path) -> list[dict[str, Any]]:
    """The pictures of a COCO annotation file as rows of the list format, each with all its captions."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"annotation file {path} is not valid JSON ({error}); a row a line is .jsonl") from None
    images, annotations = content.get("images"), content.get("annotations", [])
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError(f'annotation file {path} must hold a list of rows, or an object of "images" and "annotations"')
    rows = {}
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise ValueError(f'{path}, image {number}: it has no "id"')
        if "file_name" not in image:
            raise ValueError(
                f'{path}, image {number} has no "file_name": this file is for scoring alone; give the list of the same '
                "pictures with their paths"
            )
        rows[image["id"]] = {"image": image["file_name"], "image_id": image["id"], "caption": []}
        rows[image["id"]] |= {"domain": image["domain"]} if "domain" in image else {}
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or annotation.get("image_id") not in rows:
            raise ValueError(f'{path}, annotation {number}: its "image_id" is none of the images')
        if not isinstance(annotation.get("caption"), str):
            raise ValueError(f'{path}, annotation {number}: "caption" must be a text: is this a file of captions?')
        rows[annotation["image_id"]]["caption"].append(annotation["caption"])
    return list(rows.values())


def _picture(row: object, path: Path, number: int, root: Path, need_texts: bool) -> CaptionedImage:
    where = f"{path}, row {number}"
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a row must be an object with "image" and "caption", not a {type(row).__name__}')
    image, caption = row.get("image"), row.get("caption", [])
    if image is None and "url" in row:
        raise ValueError(
            f"{where}: it has a URL but no picture yet; fetch the list with `capfilt download {path} DATA` and use "
            "DATA in its place"
        )
    if not isinstance(image, str) or not image:
        raise ValueError(f'{where}: "image" must be a path, found {image!r}')
    texts = [caption] if isinstance(caption, str) else caption
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or (need_texts and not texts):
        raise ValueError(f'{where}: "caption" must be a text or a list of texts, found {row.get("caption")!r}')
    coco = COCO_NUMBER.search(image)
    image_id = row.get("image_id", row.get("img_id", int(coco[1]) if coco else image))
    if not isinstance(image_id, int | str):
        raise ValueError(f'{where}: "image_id" must be a number or a string, found {image_id!r}')
    picture: CaptionedImage = {"key": image, "image": root / image, "texts": list(texts), "image_id": image_id}
    return picture | {"domain": row["domain"]} if isinstance(row.get("domain"), str) else picture
