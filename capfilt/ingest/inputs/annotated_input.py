"""Pictures under a folder, by an annotation file, as inputs of `capfilt pack`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from blipcore.io.storage import AnyPath
from capfilt.ingest.inputs.annotations import AnnotationRow, open_annotations, without_caption_number
from capfilt.ingest.inputs.input import InputOptions, InputRow, PictureInput, file_row
from capfilt.ingest.inputs.picture_names import PictureNames
from capfilt.ingest.inputs.splits import folder_split, is_chosen
from capfilt.ingest.lists.list_files import file_fingerprint


class AnnotatedPictures:
    """The rows of an annotation file, with the files that they name. Counts are added to an input.

    `found` are the names of the files below `root`.
    """

    def __init__(self, path: AnyPath, root: AnyPath, counts: PictureInput, prefix: str = "") -> None:
        self.path, self.root, self.counts, self.prefix = path, root, counts, prefix
        self.annotations = open_annotations(path, counts.options)
        self.names = PictureNames(root)
        self.found: set[str] = set()
        self._named = self._outside = 0
        self._first = ""
        counts.format, counts.picture = self.annotations.format, f"'{self.annotations.picture}'"
        counts.notes += [f"{note}." for note in self.annotations.notes if f"{note}." not in counts.notes]
        for name in self.annotations.texts:
            counts.texts[name] += 0
        counts.unused.update(self.annotations.unused)

    def rows(self) -> Iterator[InputRow]:
        """Yield a row per picture: consecutive rows of one picture hold its texts."""
        for _, group in groupby(self.annotations, key=_picture_key):
            rows = list(group)
            if self._is_in_split(rows[0]):
                yield self._row(rows)
        self._require_pictures()

    def _is_in_split(self, row: AnnotationRow) -> bool:
        """Return whether a row names a picture in a folder of a chosen split, if folders are the splits."""
        split = folder_split(f"{self.prefix}{row.name}") if self.counts.splits else None
        return split is None or is_chosen(split, self.counts.options.split)

    def _row(self, rows: list[AnnotationRow]) -> InputRow:
        texts = [text for row in rows for text in row.texts]
        sources = {name for row in rows for name in row.sources}
        if self.counts.is_in_split(rows[0].split):
            self.counts.texts.update(sources)
        row = self._find(rows[0].name, texts) | {"columns": rows[0].columns or {}, "split": rows[0].split}
        if len(rows) > 1:
            of_others = [other.columns for other in rows[1:] for _ in other.texts]
            row["text_columns"] = [None] * len(rows[0].texts) + of_others
        error = next((row.error for row in rows if row.error is not None), None)
        if error is not None:
            self.counts.add_problem("rows that cannot be read as a whole", error)
            self.counts.unreadable = self.counts.unreadable or error
            row |= {"error": error}
            if row.get("status") == "bad_url":
                row |= {"status": "bad_row"}
        return row

    def _find(self, name: Any, texts: list[str]) -> InputRow:
        """Return the row of the picture that is named."""
        if not isinstance(name, str) or not name.strip():
            return {"url": None, "texts": texts, "status": "bad_url", "error": "no path"}
        self._named += 1
        relative = self.names.relative(name)
        if relative is None:
            self._outside += 1
            self._first = self._first or name
            problem = f"outside of {self.root.name or self.root}"
            return {"url": name, "texts": texts, "status": "forbidden", "error": problem}
        found = self.names.find(relative) or self.names.find(without_caption_number(relative))
        if found is None:
            self._first = self._first or relative
        else:
            self.found.add(found)
        row = file_row(self.names.root, relative if found is None else found, texts)
        return row | {"url": self.prefix + row["url"]} if self.prefix else row

    def _require_pictures(self) -> None:
        """Raise ValueError if no picture exists."""
        if not self._named or self.found:
            return
        first = f"{self._first[:160]}{'...' * (len(self._first) > 160)}"
        if self._outside == self._named:
            raise ValueError(
                f"All {self._named:,} pictures that {self.path} names are outside of {self.root}, such as "
                f"{first}. Give a folder that holds them as SOURCE, and the file with --annotations."
            )
        parents = self.names.root.parents if isinstance(self.names.root, Path) else ()
        parent = next(
            (str(folder) for folder in parents if (folder / self._first).exists()), "the folder of these names"
        )
        raise ValueError(
            f"None of the {self._named:,} pictures that {self.path} names exists under {self.root}, such as "
            f"{first}; give {parent} as SOURCE, and the file with --annotations."
        )


def _picture_key(row: AnnotationRow) -> object:
    return (without_caption_number(row.name), row.split) if isinstance(row.name, str) and row.name else object()


class AnnotatedInput(PictureInput):
    """Pictures under a folder, by an annotation file."""

    def __init__(self, path: AnyPath, root: AnyPath, options: InputOptions) -> None:
        super().__init__(path, "annotations", [], options, annotation_fingerprint=file_fingerprint(str(path)))
        self.file_count = 1
        self._pictures = AnnotatedPictures(path, root, self)

    def read_rows(self) -> Iterator[InputRow]:
        return self._pictures.rows()
