"""COCO caption files, `{"images": [...], "annotations": [...]}`, which NoCaps uses too."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from blipcore.io.storage import AnyPath


class CocoImage(NamedTuple):
    """An image of a COCO file and the captions of its annotations."""

    id: int | str
    file_name: Any
    domain: Any  # of NoCaps: in-domain, near-domain or out-domain; None if missing
    captions: list[Any]


def read_coco(path: AnyPath) -> list[CocoImage]:
    """Return the images of a COCO file, in its order and with their captions; reads the whole file.

    Raises ValueError if it is no JSON, and as `parse_coco`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); a file with one row per line ends in .jsonl.") from None
    return parse_coco(content, str(path))


def parse_coco(
    content: Any, path: str, require_captions: bool = True, caption_keys: tuple[str, ...] = ("caption",)
) -> list[CocoImage]:
    """Return the images of the content of a COCO file, in its order and with their captions.

    `caption_keys` are those of an annotation. Raises ValueError with `path` and entry for an image without id or file
    name and an annotation without image id. With `require_captions`, also for an annotation without caption or of an
    unknown image; otherwise these are ignored.
    """
    images = content.get("images") if isinstance(content, dict) else None
    annotations = content.get("annotations", []) if isinstance(content, dict) else None
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError(f'{path} must hold a list of rows, or an object of "images" and "annotations".')
    captions: dict[str, list[Any]] = {}  # some files have ids as numbers in one list and as strings in the other
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise ValueError(f'{path}, image {number}: its "id" is missing, or no whole number or string.')
        if "file_name" not in image:
            raise ValueError(
                f'{path}, image {number} has no "file_name", so this file can only be used for scoring; give a list of '
                "the same pictures with their paths."
            )
        captions[str(image["id"])] = []
    for number, annotation in enumerate(annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(image_id, int | str):
            raise ValueError(f'{path}, annotation {number}: its "image_id" is missing, or no whole number or string.')
        if str(image_id) not in captions:
            if require_captions:
                raise ValueError(f'{path}, annotation {number}: its "image_id" is none of the images.')
            continue
        for key in caption_keys:
            caption = annotation.get(key)
            if require_captions and not isinstance(caption, str):
                raise ValueError(f'{path}, annotation {number}: "{key}" must be a text: is this a file of captions?')
            if caption is not None:
                captions[str(image_id)].append(caption)
    return [
        CocoImage(image["id"], image["file_name"], image.get("domain"), captions[str(image["id"])]) for image in images
    ]
