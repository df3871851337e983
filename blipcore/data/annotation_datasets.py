"""Data sets described by one annotation file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blipcore.data.annotations import read_captions, split_captions
from blipcore.data.dataset import DatasetEntry, stable_id
from blipcore.data.vqa_nlvr import read_image_pairs, read_questions, split_rows


class AnnotationDataset:
    """An annotation file, its rows in parts of which only a few are in memory; the pictures are files."""

    def __init__(self, path: Path, image_root: str | Path | None) -> None:
        self.name, self.path = str(path), path
        self.root = Path(image_root) if image_root is not None else path.parent
        self.problems: dict[str, str] = {}
        self.parts = self.split(path)
        self.counts = [part.pictures for part in self.parts]

    split = staticmethod(split_captions)

    def load(self, shard: int) -> list[DatasetEntry]:
        """The pictures of a part, in the order of the file."""
        rows = read_captions(self.path, self.root, part=self.parts[shard])
        return [DatasetEntry(row["key"], tuple(row["texts"]), stable_id(str(row["image_id"]))) for row in rows]

    def prefetch(self, shards: Iterable[int]) -> None:
        """Nothing to prepare."""

    def describe(self, shard: int, picture: DatasetEntry) -> str:
        """What to call a picture in a report."""
        return picture.key

    def read(self, shard: int, picture: DatasetEntry) -> bytes:
        """The encoded picture; raises OSError."""
        try:
            return (self.root / picture.key).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError("no such file") from None


class QuestionDataset(AnnotationDataset):
    """A VQA file: a "picture" is a row, its text the question; a picture of several questions counts several times."""

    split = staticmethod(split_rows)

    def load(self, shard: int) -> list[DatasetEntry]:
        """The questions of a part, with their answers and the answers' weights."""
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
    """An NLVR2 file: a "picture" is a row of two, its text the sentence."""

    split = staticmethod(split_rows)

    def load(self, shard: int) -> list[DatasetEntry]:
        """The pairs of a part, each with its label."""
        pairs = []
        for row in read_image_pairs(self.path, self.root, part=self.parts[shard]):
            left, right = (DatasetEntry(key, (row["sentence"],), stable_id(key)) for key in row["keys"])
            pairs.append(left._replace(second=right, extra={"label": row["label"]}))
        return pairs
