"""Annotation files of captioning and retrieval, read as one record per picture.

The format follows from the content:

    COCO (Karpathy), Flickr30k, pre-training    [{"image": path, "caption": text or [text, ...], "image_id": any}, ...]
    NoCaps                                      [{"image": path, "img_id": number}, ...]
    COCO's and NoCaps' own annotation files     {"images": [{"id", "file_name", "domain"}, ...],
                                                 "annotations": [{"image_id", "caption"}, ...]}

Lists may also be JSON lines (`.jsonl`), and of any length. Pictures are in the order of their first rows, each with
all its texts; empty texts do not count. `picture_lists` has further layouts and names of columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from blipcore.data.picture_lists import (
    IMAGE_COLUMNS,
    TEXT_COLUMNS,
    default_root,
    download_first,
    is_picture_list,
    pack_command,
    pack_first,
    read_picture_list,
)
from blipcore.io.coco import read_coco
from blipcore.io.json_rows import FIRST_ROW, RowStart, first_character, read_json_rows

MISSING = object()
ROWS_PER_PART = 50_000  # of a list, held in memory at a time
COCO_FILE_NAME = re.compile(r"COCO_\w+_(\d{12})\.\w+$")  # its number is the image id of COCO's evaluation server


class CaptionedImage(TypedDict):
    """A picture of an annotation file.

    `image_id` is the file's own (image_id, img_id or id), else COCO's number in the file name, else the path.
    """

    key: str  # the path as the file has it
    image: Path
    texts: list[str]
    image_id: int | str
    domain: NotRequired[str]  # NoCaps: in-domain, near-domain or out-domain


class ListPart(NamedTuple):
    """Consecutive rows of a file: the start of the first, and the number of the row after the last."""

    start: RowStart
    stop: int
    pictures: int  # with a text
    blank_rows: int = 0  # without a text


def read_captioned_images(
    path: str | Path, image_root: str | Path | None = None, need_texts: bool = True, part: ListPart | None = None
) -> list[CaptionedImage]:
    """Read an annotation file, or a `part` of it. Image paths are relative to `image_root`, by default to the file.

    Without `need_texts` a picture may have no text, as in NoCaps; otherwise it is left out. Raises FileNotFoundError,
    or ValueError with file and row.
    """
    pictures: dict[tuple[int | str, str], CaptionedImage] = {}
    for _, row in _rows(Path(path), image_root, need_texts, part):
        if need_texts and not row["texts"]:
            continue
        picture = pictures.setdefault(_picture_id(row), row)
        if picture is not row:
            picture["texts"].extend(row["texts"])
    if need_texts and not pictures:
        raise _no_texts(Path(path))
    return list(pictures.values())


def split_captions(path: str | Path, rows: int = ROWS_PER_PART) -> list[ListPart]:
    """Split a file into parts of about `rows` rows for `read_captioned_images`, without holding a long list in memory.

    Consecutive rows of a picture stay in one part; in another part it counts as another picture. A COCO annotation file
    is a single part, since its texts are apart from its pictures.
    """
    path = Path(path)
    parts: list[ListPart] = []
    pictures: set[tuple[int | str, str]] = set()
    start, stop, previous, blank = FIRST_ROW, 0, None, 0
    for row_start, row in _rows(path, None, True, None):
        picture = _picture_id(row)
        # Rows of a COCO file have no offset.
        if row_start.offset and row_start.number - start.number >= rows and picture != previous:
            parts.append(ListPart(start, stop, len(pictures), blank))
            start, pictures, blank = row_start, set(), 0
        if row["texts"]:
            pictures.add(picture)
        else:
            blank += 1
        stop, previous = row_start.number + 1, picture
    parts.append(ListPart(start, stop, len(pictures), blank))
    if not any(part.pictures for part in parts):
        raise _no_texts(Path(path))
    return parts


def _no_texts(path: Path) -> ValueError:
    remedy = "If a table or JSON file has the captions, give that file. " if path.is_dir() else ""
    return ValueError(
        f"No picture of {path} has a caption with a text. {remedy}To write captions, make a shard set with "
        f"{pack_command(path)}, and use `capfilt caption`."
    )


def _picture_id(row: CaptionedImage) -> tuple[int | str, str]:
    """Return the id and the path, which identify a picture: merged data sets may use an id twice."""
    return row["image_id"], row["key"]


def _rows(
    path: Path, image_root: str | Path | None, need_texts: bool, part: ListPart | None
) -> Iterator[tuple[RowStart, CaptionedImage]]:
    """Yield each row with its start; raise ValueError if there is none."""
    root = Path(image_root) if image_root is not None else default_root(path)
    rows: Iterator[tuple[RowStart, object]]
    if is_picture_list(path):
        rows = _without_offsets(read_picture_list(path))
    elif path.suffix.lower() == ".json" and first_character(path) == "{":
        rows = _without_offsets(_coco_rows(path))
    else:
        rows = read_json_rows(path, part.start if part else FIRST_ROW)
    is_empty = True
    for row_start, row in rows:
        if part and row_start.number >= part.stop:
            return
        is_empty = False
        yield row_start, _parse_row(row, path, row_start.number, root, need_texts)
    if is_empty:
        raise ValueError(f"{path} holds no rows.")


def _without_offsets(rows: Iterable[object]) -> Iterator[tuple[RowStart, object]]:
    """Yield rows with their numbers: such a file is read from its beginning, as a single part."""
    return ((RowStart(number), row) for number, row in enumerate(rows))


def _coco_rows(path: Path) -> list[dict[str, Any]]:
    """Return the pictures of a COCO file as rows of the list format, each with all its captions."""
    try:
        images = read_coco(path)
    except ValueError as error:
        raise ValueError(f"{error} Files of other layouts are read by {pack_command(path)}.") from None
    rows = {
        image.id: {
            "image": image.file_name,
            "image_id": image.id,
            "caption": image.captions,
            "domain": image.domain,
        }
        for image in images
    }
    return list(rows.values())


def _parse_row(row: object, path: Path, number: int, root: Path, need_texts: bool) -> CaptionedImage:
    location = f"{path}, row {number}"
    if not isinstance(row, dict):
        raise ValueError(f'{location}: a row must be an object with "image" and "caption", not a {type(row).__name__}.')
    image = next((row[name] for name in IMAGE_COLUMNS if name in row), None)
    caption = next((row[name] for name in TEXT_COLUMNS if name in row), MISSING if need_texts else None)
    if (image is None and "url" in row) or (isinstance(image, str) and image.startswith(("http://", "https://"))):
        raise download_first(path, location)
    if not isinstance(image, str) or not image:
        raise ValueError(f'{location}: "image" must be a path, not {image!r}; its columns are {_columns(row)}.')
    texts = [caption] if isinstance(caption, str) else [] if caption is None else caption
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        if texts is MISSING:
            raise pack_first(path, f'has no "caption" in row {number}; its columns are {_columns(row)}')
        raise ValueError(f'{location}: "caption" must be a text or a list of texts, not {caption!r}.')
    coco_name = COCO_FILE_NAME.search(image)
    image_id = row.get("image_id", row.get("img_id", int(coco_name[1]) if coco_name else image))
    if not isinstance(image_id, int | str):
        raise ValueError(f'{location}: "image_id" must be a number or a string, not {image_id!r}.')
    texts = [text for text in texts if text.strip()]
    picture: CaptionedImage = {"key": image, "image": root / image, "texts": texts, "image_id": image_id}
    if isinstance(row.get("domain"), str):
        picture["domain"] = row["domain"]
    return picture


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, row))
