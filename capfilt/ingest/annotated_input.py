"""Annotation files (a list with a column of paths, or COCO's JSON) as inputs of `capfilt pack`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from blipcore.io.coco import read_coco
from blipcore.io.json_rows import first_character
from blipcore.io.storage import AnyPath
from capfilt.ingest.input import PATH_COLUMNS, TEXT_COLUMNS, InputColumns, InputRow, PictureInput, file_row
from capfilt.ingest.list_files import file_fingerprint
from capfilt.ingest.lists import ListColumn, cell_texts, read_columns


class AnnotatedInput(PictureInput):
    """Pictures under a folder, by an annotation file. `rows` are its (name, cells with texts)."""

    def __init__(self, path: AnyPath, root: AnyPath, rows: Iterator[tuple[Any, list[Any]]]) -> None:
        super().__init__("annotations", [], file_fingerprint(str(path)))
        self.root, self.rows = root, rows

    def __iter__(self) -> Iterator[InputRow]:
        roots = [self.root]
        if isinstance(self.root, Path):  # absolute names may have the links of the root resolved, or not
            roots = [Path(os.path.realpath(self.root)), Path(os.path.abspath(self.root))]
        for name, cells in self.rows:
            texts = [text for cell in cells for text in cell_texts(cell)]
            if not isinstance(name, str) or not name.strip():
                yield {"url": None, "texts": texts, "status": "bad_url", "error": "no path"}
                continue
            # Links inside the folder are followed; a name that leads out of it, with .. or as a path, is refused.
            names = (_relative_to(root, name.strip()) for root in roots)
            inside = next((relative for relative in names if relative is not None), None)
            if inside is None or "\0" in name:
                problem = f"outside of {self.root.name or self.root}"
                yield {"url": name, "texts": texts, "status": "forbidden", "error": problem}
            else:
                yield file_row(roots[0], inside, texts)


def _relative_to(root: AnyPath, name: str) -> str | None:
    """Return a relative or absolute name relative to `root`, None if it is outside."""
    folder = str(root) if isinstance(root, Path) else "/" + str(root).partition("://")[2]
    name = name if isinstance(root, Path) else name.removeprefix(f"{root}/")
    path = os.path.normpath(os.path.join(folder, name))
    return os.path.relpath(path, folder) if os.path.commonpath([folder, path]) == folder else None


def open_annotated_input(path: AnyPath, root: AnyPath, columns: InputColumns) -> AnnotatedInput:
    """Open an annotation file of pictures under `root`; FileNotFoundError or ValueError if it is not one."""
    if path.name.endswith(".json") and first_character(path) == "{":
        images = read_coco(path, require_captions=False)
        return AnnotatedInput(path, root, iter([(image.file_name, image.captions) for image in images]))
    list_columns = (
        ListColumn("the path of a picture", PATH_COLUMNS, columns.image, "--image-col"),
        ListColumn("a caption", TEXT_COLUMNS, columns.caption, "--caption-col", required=False),
    )
    rows = read_columns(str(path), list_columns)
    # Consecutive rows of one picture hold its texts. Rows without a path stay apart.
    groups = groupby(rows, key=lambda row: row[0] or object())
    return AnnotatedInput(path, root, ((name, [text for _, text in group]) for name, group in groups))
