"""`capfilt evaluate judge`: measures scores on a public test, or on labels of a filtered set.

The table has a row per score and measure, with its interval and its blind value, see score.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blipcore.checkpoints.numerics import Numerics
from blipcore.data.check_pictures import require_pictures
from blipcore.device import Dtype, resolve_dtype
from blipcore.io.images import open_picture, read_orientation
from blipcore.io.storage import to_path
from blipcore.io.writing import write_json
from capfilt.engine.worker import worker_device
from capfilt.filter.config import ScoreConfig
from capfilt.filter.judge import JudgeConfig
from capfilt.filter.registry import DeclaredScorer, declare_scorers
from capfilt.filter.scorer import FirstToken, Runtime
from capfilt.judge.formats import PublicTest, read_test
from capfilt.judge.labels import LabelledTest, read_labelled_test
from capfilt.judge.measures import Interval, by_group, measure
from capfilt.judge.mix import apply_mix, open_mix
from capfilt.judge.score import CaseScores, OpenPictures, open_files, open_shards, other_pictures, score_test

LABEL_SUFFIXES = (".csv", ".tsv", ".parquet")


@dataclass(kw_only=True)
class JudgeRun:
    """Settings of `capfilt evaluate judge FILE`."""

    task: Literal["judge"] = "judge"
    # test file, see formats.py, folder of SugarCrepe files, or labels of texts
    annotations: str
    # folder of the pictures; for labels the filtered set
    image_root: str | None = None
    # the scores to test, as in `capfilt filter`
    model: str | None = None
    clip: str | list[str] | None = None
    scorer: str | list[str] | None = None
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    first_token: FirstToken = "enc"
    numerics: Numerics = "official"
    tokenizer: str | None = None
    # filtered set with a learned `mix` to test too, see `filter --labels`
    mix: str | None = None
    # pictures per batch; each is scored with its own texts and with the texts of another picture
    batch_size: int = 64
    device: str = "auto"
    dtype: Dtype = "auto"
    # JSON file of the scores of every case
    results: str | None = None
    # of the pictures, for intervals
    resamples: int = 1000
    # of the blind pictures and the intervals
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.resamples < 1:
            raise ValueError(
                f"batch_size and resamples must be at least 1, not {self.batch_size} and {self.resamples}."
            )

    @property
    def is_labels(self) -> bool:
        return Path(self.annotations).suffix.lower() in LABEL_SUFFIXES

    def declare(self) -> list[DeclaredScorer]:
        """Return the scorers without their models; none if no score is named."""
        if not (self.model or self.clip or self.scorer or self.judge.model):
            return []
        config = ScoreConfig(
            data=self.annotations,
            model=self.model,
            # a name is required without a filter
            scores=None if self.model else "judge",
            clip=self.clip,
            scorer=self.scorer,
            judge=self.judge,
            first_token=self.first_token,
            numerics=self.numerics,
            tokenizer=self.tokenizer,
        )
        return declare_scorers(config)


def evaluate_judge(run: JudgeRun, *, progress: bool = True) -> dict[str, Any]:
    """Return the measures of every score, with intervals and blind values; write the scores to `run.results`.

    Raises ValueError or FileNotFoundError for a wrong test, missing or damaged pictures and missing models, before
    anything is scored.
    """
    if run.results and Path(run.results).is_dir():
        raise ValueError(f"{run.results} is a folder; --results needs the name of a file.")
    test, stored, open_pictures = _read(run)
    scorers = run.declare()
    if not scorers and stored is None:
        raise ValueError("Name the scores to test: --model, --clip, --judge or --set scorer=MODULE:CLASS.")
    mix = open_mix(run.mix, [name for scorer in scorers for name in scorer.columns]) if run.mix else None
    scored = CaseScores({}, {}, {}, 0.0)
    if scorers:
        other_pictures(test)
        device = worker_device(run.device, 0)
        for scorer in scorers:
            scorer.load(Runtime(device, resolve_dtype(device, run.dtype)))
        scored = score_test(test, scorers, open_pictures, batch_size=run.batch_size, seed=run.seed, progress=progress)
    if mix is not None:
        for columns in (scored.scores, scored.blind):
            columns[mix.name] = apply_mix(mix, test, columns)
    all_scores = dict(stored.stored if stored else {}) | scored.scores
    rows = []
    for column, scores in all_scores.items():
        blind = measure(test, scored.blind[column], run.resamples, run.seed) if column in scored.blind else {}
        for name, interval in measure(test, scores, run.resamples, run.seed).items():
            rows.append({"score": column, "measure": name, **_numbers(interval), **_blind_numbers(blind.get(name))})
    summary: dict[str, Any] = {
        "task": "judge",
        "test": test.name,
        "pictures": len({(case.picture.shard, case.picture.path) for case in test.cases}),
        "cases": len(test.cases) // (2 if test.kind == "winoground" else 1),
        "texts": sum(len(case.texts) for case in test.cases),
        "unjudged": scored.missing or None,
        "dollars": scored.dollars or None,
        "rows": rows,
    }
    if test.kind == "pairs" and len({case.group for case in test.cases}) > 1:
        summary["groups"] = {column: by_group(test, scores) for column, scores in all_scores.items()}
    if run.results:
        write_json(to_path(run.results), _results(test, all_scores, scored.blind))
    return summary


def format_table(summary: dict[str, Any]) -> list[str]:
    """Return the lines of the table of measures."""
    header = ["score", "measure", "value", "95% interval", "blind", "95% interval"]
    table = [header]
    for row in summary["rows"]:
        blind = ["no picture", ""] if row["blind"] is None else [_three(row["blind"]), _range(row["blind_interval"])]
        table.append([row["score"], row["measure"], _three(row["value"]), _range(row["interval"]), *blind])
    for column, groups in summary.get("groups", {}).items():
        table += [
            [column, f"accuracy {group or '-'} ({count:,})", _three(value)] for group, (value, count) in groups.items()
        ]
    widths = [max(len(row[place]) for row in table if place < len(row)) for place in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in table]


def _read(run: JudgeRun) -> tuple[PublicTest, LabelledTest | None, OpenPictures]:
    """Return the test, and for labels the scores of the filtered set; check all pictures of a public test."""
    path = Path(run.annotations)
    if run.is_labels:
        labelled = read_labelled_test(path, run.image_root)
        return labelled.test, labelled, open_shards(labelled.data)
    test = read_test(path, run.image_root)
    if not test.cases:
        raise ValueError(f"{path} holds no case; give another file.")
    records = [{"image": test.root / case.picture.path} for case in test.cases]
    require_pictures(records, test.root, str(path))
    _require_boxes(test, path)
    return test, None, open_files(test.root)


def _require_boxes(test: PublicTest, path: Path) -> None:
    """Raise ValueError if a box is outside its picture, or more than twice as large."""
    for picture in {case.picture for case in test.cases if case.picture.box}:
        left, top, right, bottom = picture.box or (0, 0, 0, 0)
        with open_picture(test.root / picture.path) as image:
            width, height = image.size[::-1] if read_orientation(image) > 4 else image.size
        is_beside = left >= width or top >= height or right <= 0 or bottom <= 0
        if is_beside or right - left > 2 * width or bottom - top > 2 * height:
            raise ValueError(
                f"{path} has a box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) in {picture.path}, which has "
                f"{width} x {height} pixels; give the pictures of the test in their original size as --image-root."
            )


def _numbers(interval: Interval) -> dict[str, Any]:
    return {"value": _rounded(interval.value), "interval": [_rounded(interval.low), _rounded(interval.high)]}


def _blind_numbers(interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {"blind": None, "blind_interval": None}
    return {"blind": _rounded(interval.value), "blind_interval": [_rounded(interval.low), _rounded(interval.high)]}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(bounds: list[float | None]) -> str:
    return "-" if None in bounds else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _results(
    test: PublicTest, scores: dict[str, list[np.ndarray]], blind: dict[str, list[np.ndarray]]
) -> list[dict[str, Any]]:
    """Return a row per case: picture, texts, truth, and the scores of each column with the picture and blind."""
    return [
        {
            "picture": case.picture.path,
            **({"box": case.picture.box} if case.picture.box else {}),
            **({"shard": case.picture.shard} if case.picture.shard else {}),
            "texts": case.texts,
            **({"truth": case.truth} if case.truth else {}),
            "scores": {column: _listed(values[number]) for column, values in scores.items()},
            "blind": {column: _listed(values[number]) for column, values in blind.items()},
        }
        for number, case in enumerate(test.cases)
    ]


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
