"""Checks the pictures of annotations before a long run: whether they exist, and for scores whether they decode."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blipcore.data.transforms import load_image
from blipcore.io.messages import shorten

MAX_FOLDERS = 50  # tried as the root of the paths
THREADS = 8


def find_missing(keys: Iterable[str], root: Path, name: str) -> list[str]:
    """Return the distinct paths among `keys` that are no file under `root`.

    Raises ValueError, with --image-root as the remedy, if none of the pictures of the annotations `name` exists.
    """
    distinct = list(dict.fromkeys(keys))
    missing = [key for key in distinct if not os.path.isfile(root / key)]
    if missing and len(missing) == len(distinct):
        folder = _find_root(missing[0], root)
        remedy = (
            f"Give the folder that its paths start from with --image-root{f', such as {folder}' if folder else ''}."
        )
        if os.path.isabs(missing[0]):
            remedy = "Its paths are absolute: make them relative to a folder, and give it with --image-root."
        raise ValueError(
            f"None of the {count(len(missing), 'picture')} of {name} exists: the first would be {root / missing[0]}. "
            f"{remedy}"
        )
    return missing


def require_pictures(records: Sequence[Mapping[str, Any]], root: Path, name: str) -> None:
    """Raise ValueError if a picture of the evaluation records `name` cannot be read, as `find_missing` if none exists.

    All are decoded: a damaged one would end the evaluation when it is reached, maybe after hours.
    """
    images = {str(image): image for record in records for image in record.get("images") or (record["image"],)}
    files = [path for path in images.values() if isinstance(path, Path)]
    missing = find_missing((_relative(path, root) for path in files), root, name)
    with ThreadPoolExecutor(THREADS if files else 1) as pool:  # tars are read by one thread
        damaged = [] if missing else [problem for problem in pool.map(_find_problem, images.values()) if problem]
    if missing or damaged:
        problem = "cannot be found" if missing else "cannot be decoded"
        raise ValueError(
            f"{count(len(missing or damaged), 'picture')} of {name} {problem}: {shorten(missing or damaged)}. Scores "
            "without them could not be compared: restore them, or leave them out of the annotations."
        )


def count(number: int, noun: str) -> str:
    """Return "1 picture" or "2 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _find_problem(image: Any) -> str | None:
    try:
        load_image(image.read_bytes())
    except OSError as error:
        return f"{image} ({error.strerror or error})"
    return None


def _find_root(key: str, root: Path) -> Path | None:
    """Return the parent or a folder of `root` in which the picture exists."""
    if not root.is_dir():
        return None
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()][:MAX_FOLDERS]
    return next((folder for folder in (root.parent, *folders) if (folder / key).is_file()), None)
