"""Finds the files that an annotation file names, also if their names are spelled in another way."""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path

from blipcore.io.storage import AnyPath, list_names
from capfilt.ingest.inputs.input import PICTURE_LIKE_SUFFIXES

FOLDERS_IN_MEMORY = 64  # whose names are kept


class PictureNames:
    """Names of pictures under a folder, `root`.

    A name that no file has is looked up by its letters: accents composed or not (macOS stores them apart), the suffix
    in upper or lower case or missing, and a backslash for a slash. Folders are listed for such names only, and for all
    names of a remote folder.
    """

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self._spellings = lru_cache(FOLDERS_IN_MEMORY)(self._read_spellings)
        # Absolute names may have the links of the root resolved, or not.
        self._roots = [root]
        if isinstance(root, Path):
            self._roots = [Path(os.path.realpath(root)), Path(os.path.abspath(root))]
            self.root = self._roots[0]

    def relative(self, name: str) -> str | None:
        """Return a relative or absolute name relative to the root, None if it leads out of it.

        Links inside the folder are followed; a name that leads out of it, with .. or as a path, is refused.
        """
        if "\0" in name:
            return None
        name = name.strip()
        if not name.startswith(("/", ".")) and not any(part in name for part in ("..", "//", "/./", "://")):
            return name.removesuffix("/")  # the usual case, at a tenth of the cost
        names = (_relative_to(root, name) for root in self._roots)
        return next((relative for relative in names if relative is not None), None)

    def find(self, relative: str) -> str | None:
        """Return the name of the file that is meant by a relative name, None if it is missing."""
        if isinstance(self.root, Path) and _exists(f"{self.root}/{relative}"):
            return relative
        names = [relative] if "\\" not in relative else [relative, relative.replace("\\", "/")]
        return next((spelling for spelling in map(self._find_spelling, names) if spelling is not None), None)

    def _find_spelling(self, relative: str) -> str | None:
        folder = ""
        *parents, name = relative.split("/")
        for parent in parents:
            spellings = self._spellings(folder)
            found = spellings.get(parent) or spellings.get(_fold(parent))
            if found is None:
                return None
            folder = f"{folder}{found}/"
        spellings = self._spellings(folder)
        found = spellings.get(name) or spellings.get(_fold(name)) or spellings.get(_fold(name) + ".")
        return None if found is None else folder + found

    def _read_spellings(self, folder: str) -> dict[str, str]:
        """Return spelling -> name for the names in a folder; a spelling without its suffix ends in a dot."""
        try:
            names = list_names(self.root / folder if folder else self.root)
        except (OSError, ValueError):  # not a folder, or no name of one
            return {}
        spellings: dict[str, str] = {}
        for name in reversed(names):
            stem, _, suffix = name.rpartition(".")
            if suffix.lower() in PICTURE_LIKE_SUFFIXES:
                spellings[_fold(stem) + "."] = name
        for name in reversed(names):
            spellings[_fold(name)] = name
        return spellings | {name: name for name in names}


def _fold(name: str) -> str:
    """Return a name with composed accents and a suffix in lower case."""
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return stem + dot + suffix.lower() if dot else suffix


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a name that no file can have
        return False


def _relative_to(root: AnyPath, name: str) -> str | None:
    """Return a relative or absolute name relative to `root`, None if it is outside."""
    inner = "" if isinstance(root, Path) else str(root).partition("://")[2].partition("::")[0]
    folder = str(root) if isinstance(root, Path) else f"/{inner or 'archive'}"
    name = name if isinstance(root, Path) else name.removeprefix(f"{root}/")
    path = os.path.normpath(os.path.join(folder, name))
    return os.path.relpath(path, folder) if os.path.commonpath([folder, path]) == folder else None
