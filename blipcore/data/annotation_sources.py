"""Data sets described by one annotation file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blipcore.data.annotations import read_captions, split_captions
from blipcore.data.source import Picture, _image_id
from blipcore.data.vqa_nlvr import read_pairs, read_questions, split_rows


class AnnotationSource:
    """An annotation file, its rows in parts of which only a few are in memory; the pictures are files."""

    def __init__(self, path: Path, image_root: str | Path | None) -> None:
        self.name, self.path = str(path), path
        self.root = Path(image_root) if image_root is not None else path.parent
        self.problems: dict[str, str] = {}
        self.parts = self.split(path)
        self.counts = [part.pictures for part in self.parts]

    split = staticmethod(split_captions)

    def load(self, shard: int) -> list[Picture]:
        """The pictures of a part, in the order of the file."""
        rows = read_captions(self.path, self.root, part=self.parts[shard])
        return [Picture(row["key"], tuple(row["texts"]), _image_id(str(row["image_id"]))) for row in rows]

    def ahead(self, shards: Iterable[int]) -> None:
        """Nothing to prepare."""

    def where(self, shard: int, picture: Picture) -> str:
        """What to call a picture in a report."""
        return picture.key

    def read(self, shard: int, picture: Picture) -> bytes:
        """The encoded picture; raises OSError."""
        try:
            return (self.root / picture.key).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError("no such file") from None


class QuestionSource(AnnotationSource):
    """A VQA file: a "picture" is a row, its text the question; a picture of several questions counts several times."""

    split = staticmethod(split_rows)

    def load(self, shard: int) -> list[Picture]:
        """The questions of a part, with their answers and the answers' weights."""
        rows = read_questions(self.path, self.root, part=self.parts[shard])
        return [
            Picture(
                row["key"],
                (row["question"],),
                _image_id(row["key"]),
                more={"answers": list(row["weights"]), "weights": list(row["weights"].values())},
            )
            for row in rows
        ]


class PairSource(AnnotationSource):
    """An NLVR2 file: a "picture" is a row of two, its text the sentence."""

    split = staticmethod(split_rows)

    def load(self, shard: int) -> list[Picture]:
        """The pairs of a part, each with its label."""
        pairs = []
        for row in read_pairs(self.path, self.root, part=self.parts[shard]):
            left, right = (Picture(key, (row["sentence"],), _image_id(key)) for key in row["keys"])
            pairs.append(left._replace(second=right, more={"label": row["label"]}))
        return pairs
