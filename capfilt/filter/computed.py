"""Computed scores: columns of filtered tables that are made from other tables when texts are decided, without pictures.

They are not in `scores/<name>`, so that existing scores serve unchanged. The manifest of a filtered set records the
settings of each, so a resumed run computes the same numbers.

    confidence   log-probability of a caption under a length penalty, see confidence.py; captions only
    mix          probability that the text is right, from the other scores, see mix.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from blipcore.io.storage import AnyPath
from capfilt.filter.confidence import Confidence, captions_with_logprobs
from capfilt.filter.mix import Mix

# Scores that only captions have. Other texts are not below a limit of theirs, and rank last.
CAPTION_SCORES = frozenset({Confidence.name})


class ComputedScore(Protocol):
    """A column that is computed from a table of scores, and perhaps other tables."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that the numbers depend on besides the tables, as JSON values."""

    def compute(self, shard: str, scores: pa.Table) -> np.ndarray:
        """Return a number per row of the scores of a shard, NaN for none; earlier computed columns are in `scores`."""


def declare_computed(
    columns: Sequence[str],
    captions: Mapping[str, AnyPath | None],
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ComputedScore]:
    """Return the computed scores of sources, in the order of their columns.

    `columns` are the names of the stored scores, `captions` the folders of the sources. `recorded` are the settings in
    the manifest of a set that is resumed, with the same computed scores.
    """
    with_logprobs = captions_with_logprobs(captions)
    computed: list[ComputedScore] = []
    # a custom scorer may have had a column of this name
    is_free = Confidence.name not in columns
    if with_logprobs and is_free and (recorded is None or Confidence.name in recorded):
        computed.append(Confidence(with_logprobs, **(recorded or {}).get(Confidence.name, {})))
    if recorded is not None and Mix.name in recorded:
        computed.append(Mix(**recorded[Mix.name]))
    return computed


def recorded_settings(computed: Iterable[ComputedScore]) -> dict[str, dict[str, Any]]:
    """Return the settings of computed scores by name, for the manifest."""
    return {score.name: dict(score.settings) for score in computed}


def append_computed(scores: pa.Table, shard: str, computed: Sequence[ComputedScore]) -> pa.Table:
    """Return the scores of a shard with the computed columns."""
    for score in computed:
        numbers = score.compute(shard, scores)
        scores = scores.append_column(score.name, pa.array(numbers, pa.float32(), from_pandas=True))
    return scores
