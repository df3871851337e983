"""Scores the cases of a test twice: with their own pictures, and blind, with another picture of the test.

A score that does as well blind reads the texts alone. Several older tests can be solved so (SugarCrepe, arXiv
2306.14610). Every picture is decoded and encoded once, with its own texts and the blind ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from capfilt.engine.progress import ProgressDisplay
from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.registry import DeclaredScorer
from capfilt.judge.formats import Picture, PublicTest
from capfilt.pictures.batching import BatchSplitter
from capfilt.pictures.decode import decode_picture
from capfilt.pictures.shard_pass import PictureReader
from capfilt.shards.shard_set import ShardSet
from capfilt.vlm.cost import Cost

OpenPictures = Callable[[list[Picture]], Iterator[tuple[Picture, Image.Image]]]


class CaseScores(NamedTuple):
    """The scores of a test by column: per case one number per text, with its own picture and blind."""

    scores: dict[str, list[np.ndarray]]
    blind: dict[str, list[np.ndarray]]
    # texts without a score, by reason, as "column: reason"
    missing: dict[str, int]
    dollars: float


def other_pictures(test: PublicTest, seed: int = 0) -> dict[Picture, Picture]:
    """Return for each picture another one, of another file, in a random cycle; ValueError if there is only one file."""
    pictures = list(dict.fromkeys(case.picture for case in test.cases))
    order = np.random.default_rng(seed).permutation(len(pictures)).tolist()
    files = {(picture.shard, picture.path) for picture in pictures}
    if len(files) < 2:
        raise ValueError("The test has one picture, and the blind control needs at least two; give a larger test.")
    others: dict[Picture, Picture] = {}
    for place, number in enumerate(order):
        picture = pictures[number]
        rest = (pictures[order[(place + step) % len(order)]] for step in range(1, len(order)))
        others[picture] = next(other for other in rest if (other.shard, other.path) != (picture.shard, picture.path))
    return others


def score_test(
    test: PublicTest,
    scorers: Sequence[DeclaredScorer],
    open_pictures: OpenPictures,
    *,
    batch_size: int,
    seed: int = 0,
    progress: bool = True,
) -> CaseScores:
    """Score all cases with loaded scorers."""
    others = other_pictures(test, seed)
    # picture -> (case, whether blind) of the texts to score with it
    tasks: dict[Picture, list[tuple[int, bool]]] = {picture: [] for picture in others}
    for number, case in enumerate(test.cases):
        tasks[case.picture].append((number, False))
        tasks[others[case.picture]].append((number, True))
    columns = [column for scorer in scorers for column in scorer.columns]
    results = [{name: [np.full(len(case.texts), np.nan) for case in test.cases] for name in columns} for _ in range(2)]
    missing: dict[str, int] = {}
    splitters, cost = [BatchSplitter() for _ in scorers], Cost(*(scorer.scorer for scorer in scorers))
    total = 0.0
    with ProgressDisplay("judge", len(tasks), unit="pictures", shown=progress) as display:
        for batch in _batches(open_pictures(list(tasks)), batch_size):
            texts = [
                [text for number, _ in tasks[picture] for text in test.cases[number].texts] for picture, _ in batch
            ]
            for scorer, splitter in zip(scorers, splitters, strict=True):
                inputs = [scorer.prepare(image) for _, image in batch]
                for name, rows in _join(splitter.run(scorer.score, inputs, texts)).items():
                    if name not in columns:
                        _count_reasons(rows, missing)
                        continue
                    for (picture, _), values in zip(batch, rows, strict=True):
                        _store(results, name, values, tasks[picture], test)
            paid = cost.since_last()
            total += paid
            display.advance(len(batch), len(batch), paid)
    scores, blind = results
    return CaseScores(scores, blind, missing, total)


def open_files(root: Path) -> OpenPictures:
    """Return a function that decodes pictures of files under `root`, cut to their boxes."""

    def read(pictures: list[Picture]) -> Iterator[tuple[Picture, Image.Image]]:
        for picture in pictures:
            image = decode_picture((root / picture.path).read_bytes())
            if picture.box is not None:
                left, top, right, bottom = map(round, picture.box)
                image = image.crop((left, top, right, bottom))
            yield picture, image

    return read


def open_shards(data: FilteredSet) -> OpenPictures:
    """Return a function that decodes pictures of the tars of a filtered set."""

    def read(pictures: list[Picture]) -> Iterator[tuple[Picture, Image.Image]]:
        images = ShardSet.open(str(data.images))
        wanted = {(picture.shard, picture.path): picture for picture in pictures}
        reader = PictureReader(images, ahead=64)
        for shard in dict.fromkeys(str(picture.shard) for picture in pictures):
            with reader.open(shard, _as_it_is) as shard_pass:
                for batch in shard_pass.batches(32):
                    for key, image in zip(batch.keys, batch.inputs, strict=True):
                        if (shard, key) in wanted:
                            yield wanted.pop((shard, key)), image
        if wanted:
            picture = next(iter(wanted.values()))
            raise ValueError(f"{images.tar(str(picture.shard))} has no picture {picture.path}; remove its label.")

    return read


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _batches(pictures: Iterator[tuple[Picture, Image.Image]], size: int) -> Iterator[list[tuple[Picture, Image.Image]]]:
    batch: list[tuple[Picture, Image.Image]] = []
    for item in pictures:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _join(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Return the rows of all parts per column."""
    return {name: [row for part in parts for row in part[name]] for name in parts[0]}


def _store(
    results: list[dict[str, list[np.ndarray]]],
    name: str,
    values: Sequence[float | None],
    tasks: Sequence[tuple[int, bool]],
    test: PublicTest,
) -> None:
    """Write the scores of a picture's texts into the arrays of their cases."""
    start = 0
    for number, is_blind in tasks:
        count = len(test.cases[number].texts)
        results[is_blind][name][number][:] = [
            np.nan if value is None else value for value in values[start : start + count]
        ]
        start += count


def _count_reasons(rows: Sequence[Any], missing: dict[str, int]) -> None:
    for row in rows:
        for reason in row:
            if isinstance(reason, str):
                kind = reason.partition(":")[0]
                missing[kind] = missing.get(kind, 0) + 1
