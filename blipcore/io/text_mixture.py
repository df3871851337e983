"""Mixtures of texts: how often a trainer draws each text of a picture.

    equal                      every text alike
    web=0.5,blip=0.5           shares of the sources; the texts of a source divide its share evenly
    itm/0.1                    softmax of a score at temperature 0.1: texts of higher score more often
    length/50                  the same with the number of characters; length/-50 prefers short texts
    web=0.5,blip=0.5,itm/0.1   shares of the sources, softmax among the texts of each

If a picture has no text of a source, its other sources divide that share in proportion to their own.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from math import gcd, isfinite

import numpy as np

EQUAL = "equal"
LENGTH = "length"
# Divided by less, scores overflow and all texts would count alike.
MIN_TEMPERATURE = 1e-100
EXAMPLE = "equal, web=0.5,blip=0.5 or itm/0.1"
_NAME = r"\w[\w.+-]*"


@dataclass(frozen=True)
class TextMixture:
    """Shares of sources, and a number of each text that weighs the texts of one source."""

    spec: str
    # source -> share, adding up to 1; empty: the sources do not matter
    shares: Mapping[str, float] = field(default_factory=dict)
    # score column, `LENGTH`, or None for equal texts
    column: str | None = None
    temperature: float = 1.0

    @staticmethod
    def parse(spec: str) -> TextMixture:
        """Return the mixture that a text such as "web=0.5,blip=0.5" describes; raises ValueError for another text."""
        shares: dict[str, float] = {}
        columns: list[tuple[str, float]] = []
        for term in () if spec.strip() == EQUAL else spec.split(","):
            match = re.fullmatch(rf"\s*({_NAME})\s*([=/])\s*(\S+)\s*", term)
            number = _to_number(match[3]) if match else None
            if match is None or number is None:
                raise ValueError(f"The mixture '{spec}' has the part '{term.strip()}'; write it as {EXAMPLE}.")
            if match[2] == "/":
                columns.append((match[1], number))
            elif match[1] in shares:
                raise ValueError(f"The mixture '{spec}' gives the source '{match[1]}' twice; give it one share.")
            elif number < 0:
                raise ValueError(f"The share of a source is 0 or more, not {match[3]} as in the mixture '{spec}'.")
            else:
                shares[match[1]] = number
        if len(columns) > 1 or any(abs(temperature) < MIN_TEMPERATURE for _, temperature in columns):
            raise ValueError(
                f"The mixture '{spec}' takes one score with a temperature of at least {MIN_TEMPERATURE}, as itm/0.1."
            )
        if shares and not sum(shares.values()):
            raise ValueError(f"The mixture '{spec}' gives no source a share above 0.")
        total = sum(shares.values())
        shares = {source: share / total for source, share in shares.items()}
        return TextMixture(spec, shares, *(columns[0] if columns else (None, 1.0)))

    @property
    def score(self) -> str | None:
        """The score column that `probabilities` needs, if any."""
        return None if self.column == LENGTH else self.column

    def require(self, sources: Collection[str], columns: Collection[str], name: object) -> None:
        """Raise ValueError unless the mixture fits a filtered set with these sources and score columns."""
        if self.score is not None and self.score not in columns:
            known = ", ".join([LENGTH, *columns])
            raise ValueError(f"{name} has no score '{self.score}' for the mixture '{self.spec}'; it has {known}.")
        for source in self.shares:
            if source not in sources:
                raise ValueError(f"{name} has no texts of '{source}'; its sources are {', '.join(sources)}.")
        for source in sources:
            if self.shares and source not in self.shares:
                raise ValueError(
                    f"The mixture '{self.spec}' has no share for the source '{source}' of {name}; add {source}=0 to "
                    "leave its texts out."
                )

    def probabilities(
        self,
        pictures: Sequence[str],
        sources: Sequence[str],
        texts: Sequence[str],
        scores: Sequence[float | None] | None = None,
    ) -> np.ndarray:
        """Return the probability (R,) of each of R texts, given their pictures, sources and, if needed, scores.

        Those of a picture add up to 1, or are all 0 if its sources have no share. A text without a score is drawn only
        if no other text of its group has one.
        """
        picture = np.unique(np.asarray(pictures, dtype=object), return_inverse=True)[1]
        source_names, source = np.unique(np.asarray(sources, dtype=object), return_inverse=True)
        group = picture * len(source_names) + source if self.shares else picture
        group = np.unique(group, return_inverse=True)[1]
        weights = self._softmax(group, texts, scores)
        if self.shares:
            weights *= np.array([self.shares[name] for name in source_names])[source]
        totals = _sum_by(picture, weights)[picture]
        return np.divide(weights, totals, out=np.zeros(len(weights)), where=totals > 0)

    def _softmax(self, group: np.ndarray, texts: Sequence[str], scores: Sequence[float | None] | None) -> np.ndarray:
        """Return a weight per text; those of a group add up to 1."""
        numbers = [len(text.strip()) for text in texts] if self.column == LENGTH else scores
        if self.column is None or numbers is None:
            values = np.zeros(len(group))
        else:
            values = np.array(numbers, dtype=np.float64) / self.temperature  # None becomes NaN
            values[~np.isfinite(values)] = -np.inf
        highest = np.full(group.max(initial=-1) + 1, -np.inf)
        np.maximum.at(highest, group, values)
        values[np.isneginf(highest)[group]] = 0.0  # no text of the group has a number: all alike
        highest[np.isneginf(highest)] = 0.0
        weights = np.exp(values - highest[group])
        return weights / _sum_by(group, weights)[group]


def _to_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _sum_by(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.bincount(group, values, minlength=group.max(initial=-1) + 1)


def hash_fraction(*key: object) -> float:
    """Return a number from 0 to below 1 that depends on `key` alone."""
    digest = blake2b("/".join(map(str, key)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def draw(probabilities: Sequence[float], fraction: float) -> int:
    """Return the first index at which the cumulative sum of probabilities exceeds `fraction`, from 0 to below 1."""
    ends = list(accumulate(probabilities))
    return min(bisect_right(ends, fraction * ends[-1]), len(ends) - 1)


def count_draws(probabilities: Sequence[float], draws: int, fraction: float) -> list[int]:
    """Return how often each index occurs among `draws` evenly spaced draws, which start at `fraction` of a step.

    Each count is the expected one, rounded up or down; over many fractions its mean is exact.
    """
    counts = [0] * len(probabilities)
    for step in range(draws):
        counts[draw(probabilities, (step + fraction) / draws)] += 1
    return counts


def shortest_ratio(counts: Sequence[int]) -> list[int]:
    """Return the smallest whole numbers in the proportion of `counts`."""
    divisor = gcd(*counts) or 1
    return [count // divisor for count in counts]
