"""Folders in the layout of Hugging Face's `imagefolder`, as inputs of `capfilt pack`.

A `metadata.csv`, `metadata.jsonl` or `metadata.parquet` names pictures in its own folder and those below, in the column
`file_name` or one that ends in `_file_name`. https://huggingface.co/docs/datasets/image_load
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from blipcore.io.storage import AnyPath
from capfilt.ingest.inputs.annotated_input import AnnotatedPictures
from capfilt.ingest.inputs.folder_input import FolderInput
from capfilt.ingest.inputs.input import InputOptions, InputRow
from capfilt.ingest.inputs.splits import folder_split, is_chosen
from capfilt.ingest.lists.list_files import file_fingerprint

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_metadata(files: dict[str, int]) -> list[str]:
    """Return the names of the metadata files in a folder and its subfolders."""
    return [name for name in files if name.rpartition("/")[2] in METADATA_NAMES]


class ImageFolderInput(FolderInput):
    """Pictures with metadata files; pictures that none of them names follow, with their own text files."""

    def __init__(self, root: AnyPath, files: dict[str, int], options: InputOptions) -> None:
        metadata = find_metadata(files)
        others = {name: size for name, size in files.items() if name not in metadata}
        super().__init__(root, others, options, kind="imagefolder")
        self.metadata = [name for name in metadata if not self.splits or _is_wanted(name, options.split)]
        digests = [file_fingerprint(str(root / name)) for name in self.metadata]
        self.annotation_fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        self.file_count += len(self.metadata)
        self._parts = [self._open(name) for name in self.metadata]

    def _open(self, name: str) -> AnnotatedPictures:
        folder, slash, _ = name.rpartition("/")
        return AnnotatedPictures(self.root / name, self.root / folder if slash else self.root, self, folder + slash)

    def read_rows(self) -> Iterator[InputRow]:
        named: set[str] = set()
        for part in self._parts:
            yield from part.rows()
            named |= {part.prefix + name for name in part.found}
        for name in self.pictures:
            if name not in named:
                self.add_problem("pictures that no metadata file names", name)
                yield self.row(name)


def _is_wanted(name: str, chosen: str | None) -> bool:
    """Return whether a metadata file may name pictures of a chosen split: it is in its folder, or above all splits."""
    split = folder_split(name)
    return split is None or is_chosen(split, chosen)
