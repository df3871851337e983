"""The result of a trial: the scores of each set, the differences, and a sentence per test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capfilt.trial.intervals import Difference, difference
from capfilt.trial.plan import Test, TrialConfig
from capfilt.trial.scores import SCORE_NAMES, read_scores

# Share of the variance due to seeds from which more runs help more than more pictures.
LARGE_SEED_SHARE = 0.5


@dataclass(frozen=True)
class Comparison:
    """The difference of a set from the first one in one test."""

    test: Test
    first: str
    second: str
    difference: Difference
    # differences of the runs of the second set from the mean of the first
    runs: list[float]

    @property
    def sentence(self) -> str:
        """A sentence on the difference: its size and interval, and whether it is clear."""
        value, low, high, from_seeds = self.difference
        interval = f"95% interval {low:+.1f} to {high:+.1f}"
        score = SCORE_NAMES[self.test]
        if self.difference.is_clear:
            verb = "better" if value > 0 else "worse"
            return f"{score}: {self.second} is {verb} than {self.first}, by {value:+.1f} ({interval})."
        more = "more seeds" if from_seeds >= LARGE_SEED_SHARE else "more pictures"
        return (
            f"{score}: this trial cannot tell {self.second} and {self.first} apart: the difference is {value:+.1f} "
            f"({interval}), and {more} would narrow it most."
        )


@dataclass(frozen=True)
class TrialResult:
    """The means of all runs by test and set, and the comparisons with the first set."""

    means: dict[Test, dict[str, list[float]]]
    pictures: dict[Test, int]
    comparisons: list[Comparison]

    @property
    def sentences(self) -> list[str]:
        return [comparison.sentence for comparison in self.comparisons]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, for a summary."""
        rows = [
            {
                "score": SCORE_NAMES[comparison.test],
                "first": comparison.first,
                "second": comparison.second,
                "difference": comparison.difference.value,
                "low": comparison.difference.low,
                "high": comparison.difference.high,
                "variance_from_seeds": comparison.difference.from_seeds,
                "clear": comparison.difference.is_clear,
            }
            for comparison in self.comparisons
        ]
        means = {SCORE_NAMES[test]: by_set for test, by_set in self.means.items()}
        return {"runs": means, "differences": rows, "conclusion": self.sentences}


def compare(config: TrialConfig) -> TrialResult:
    """Compare the finished runs of a trial."""
    names = set_names(config.selections)
    means: dict[Test, dict[str, list[float]]] = {}
    pictures: dict[Test, int] = {}
    comparisons = []
    for test in config.tests:
        scores = read_scores(config, test)
        pictures[test] = scores[0].shape[1]
        means[test] = {name: of_set.mean(axis=1).tolist() for name, of_set in zip(names, scores, strict=True)}
        for name, of_set in zip(names[1:], scores[1:], strict=True):
            runs = (of_set.mean(axis=1) - np.mean(scores[0])).tolist()
            comparisons.append(Comparison(test, names[0], name, difference(scores[0], of_set), runs))
    return TrialResult(means, pictures, comparisons)


def set_names(sets: list[str]) -> list[str]:
    """Return the names of the sets' folders, with their numbers if two are the same."""
    names = [Path(path).name or path for path in sets]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]
