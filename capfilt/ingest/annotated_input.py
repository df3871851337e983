"""Annotation files (CSV, JSON, COCO) as inputs of `capfilt pack`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from blipcore.io.reading import open_read
from blipcore.io.storage import AnyPath
from capfilt.ingest.input import PATH_COLUMNS, TEXT_COLUMNS, InputColumns, InputRow, PictureInput, file_row, cell_texts
from capfilt.ingest.lists import ListColumn, file_fingerprint, read_columns


class AnnotatedInput(PictureInput):
    """The pictures that a file names, under a folder, and their texts."""

    def __init__(self, path: AnyPath, root: AnyPath, rows: Iterator[tuple[Any, list[Any]]]):
        super().__init__("annotations", [], file_fingerprint(str(path)))
        self.root, self.rows = root, rows

    def __iter__(self) -> Iterator[InputRow]:
        roots = [self.root]
        if isinstance(self.root, Path):  # whole paths go through its links, or have them resolved
            roots = [Path(os.path.realpath(self.root)), Path(os.path.abspath(self.root))]
        for name, values in self.rows:
            texts = [text for value in values for text in cell_texts(value)]
            if not isinstance(name, str) or not name.strip():
                yield {"url": None, "texts": texts, "status": "bad_url", "error": "no path"}
                continue
            # links inside of the folder are the user's own; a path that climbs out of it is the annotation's doing
            inside = next((path for root in roots if (path := _relative_to(root, name.strip())) is not None), None)
            if inside is None or "\0" in name:
                problem = f"outside of {self.root.name or self.root}"
                yield {"url": name, "texts": texts, "status": "forbidden", "error": problem}
            else:
                yield file_row(roots[0], inside, texts)


def _relative_to(root: AnyPath, name: str) -> str | None:
    """A path, relative to `root` or whole, as it is seen from there; None when it lies outside."""
    here = str(root) if isinstance(root, Path) else "/" + str(root).partition("://")[2]
    name = name if isinstance(root, Path) else name.removeprefix(f"{root}/")
    whole = os.path.normpath(os.path.join(here, name))
    return os.path.relpath(whole, here) if os.path.commonpath([here, whole]) == here else None


def open_annotated_input(path: AnyPath, root: AnyPath, columns: InputColumns) -> AnnotatedInput:
    if path.name.endswith(".json") and (coco := _coco(path)) is not None:
        return AnnotatedInput(path, root, coco)
    wanted = (
        ListColumn("the path of a picture", PATH_COLUMNS, columns.image, "--image-col"),
        ListColumn("a caption", TEXT_COLUMNS, columns.caption, "--caption-col", required=False),
    )
    rows = read_columns(str(path), wanted)
    # rows of one picture stand together where there are several: its texts
    grouped = ((name, [text for _, text in group]) for name, group in groupby(rows, key=lambda row: row[0] or object()))
    return AnnotatedInput(path, root, grouped)


def _coco(path: AnyPath) -> Iterator[tuple[Any, list[Any]]] | None:
    """(file name, texts) of COCO's `{"images": [...], "annotations": [...]}`, None for JSON of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}.")
    with open_read(path) as file:
        if not file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        texts: dict[Any, list[Any]] = {}
        for annotation in content.get("annotations", ()):
            texts.setdefault(annotation["image_id"], []).append(annotation.get("caption"))
        return iter([(image["file_name"], texts.get(image["id"], [])) for image in content["images"]])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is neither a list of objects nor COCO's images and annotations ({type(error).__name__}: {error})."
        ) from None
