"""Data sets of an annotation file, with pictures in files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blipcore.data.annotations import read_captioned_images, split_captions
from blipcore.data.check_pictures import count, find_missing
from blipcore.data.dataset import DatasetEntry, stable_id
from blipcore.data.picture_lists import default_root
from blipcore.data.vqa_nlvr import read_image_pairs, read_questions, split_list
from blipcore.io.messages import shorten


class AnnotationDataset:
    """A captioning file, loaded in parts of which few are in memory."""

    def __init__(self, path: Path, image_root: str | Path | None) -> None:
        self.name, self.path = str(path), path
        self.root = Path(image_root) if image_root is not None else default_root(path)
        self.problems: dict[str, str] = {}
        self.parts = self.split(path)
        self.counts = [part.pictures for part in self.parts]
        blank = sum(part.blank_rows for part in self.parts)
        if blank:
            self.problems[self.name] = f"{count(blank, 'row')} without a caption, not used"

    def check_pictures(self) -> None:
        """Record the pictures that do not exist in `problems`. Raises ValueError if none exists."""
        entries = (entry for shard in range(len(self.parts)) for entry in self.load(shard))
        keys = (part.key for entry in entries for part in (entry, entry.second) if part is not None)
        missing = find_missing(keys, self.root, self.name)
        if missing:
            problem = f"{count(len(missing), 'picture')} not found, replaced by the next: {shorten(missing)}"
            self.problems[self.name] = "; ".join(filter(None, [self.problems.get(self.name), problem]))

    split = staticmethod(split_captions)

    def load(self, shard: int) -> list[DatasetEntry]:
        rows = read_captioned_images(self.path, self.root, part=self.parts[shard])
        return [DatasetEntry(row["key"], tuple(row["texts"]), stable_id(str(row["image_id"]))) for row in rows]

    def read(self, shard: int, entry: DatasetEntry) -> bytes:
        try:
            return (self.root / entry.key).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError("no such file") from None

    def describe(self, shard: int, entry: DatasetEntry) -> str:
        return entry.key

    def location(self, shard: int, entry: DatasetEntry) -> tuple[str, str]:
        return "", str((self.root / entry.key).resolve())

    def prefetch(self, shards: Iterable[int]) -> None:
        """Do nothing, since the pictures are local."""


class QuestionDataset(AnnotationDataset):
    """A VQA file: an entry is a question with its weighted answers."""

    split = staticmethod(split_list)

    def load(self, shard: int) -> list[DatasetEntry]:
        rows = read_questions(self.path, self.root, part=self.parts[shard])
        return [
            DatasetEntry(
                row["key"],
                (row["question"],),
                stable_id(row["key"]),
                extra={"answers": list(row["weights"]), "weights": list(row["weights"].values())},
            )
            for row in rows
        ]


class PairDataset(AnnotationDataset):
    """An NLVR2 file: an entry is a pair of pictures with a sentence and a label."""

    split = staticmethod(split_list)

    def load(self, shard: int) -> list[DatasetEntry]:
        entries = []
        for row in read_image_pairs(self.path, self.root, part=self.parts[shard]):
            left, right = (DatasetEntry(key, (row["sentence"],), stable_id(key)) for key in row["keys"])
            entries.append(left._replace(second=right, extra={"label": row["label"]}))
        return entries
