"""The computed score `mix`: one probability that a text is right, from all other scores.

With labels, it is a logistic regression on the score columns, the length of the text and its source, fitted by
`logistic.py`. Probabilities enter as log-odds. Every feature has a further weight per source, because a score may tell
right from wrong in web texts and not in a captioner's. Precision and AUC are measured on held-out values: a model
without the labels of a fold of pictures gives those of the fold.

Without labels, it is the sum of two scores that err differently, `logistic(logit(itm) + a (confidence - median))`, with
`a` such that both terms have the same standard deviation over all captions. A text without a confidence has its ITM,
and so has the typical caption, so that one threshold serves for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.intervals import MIN_LABELS
from capfilt.filter.labelled import LabelledTexts
from capfilt.filter.logistic import cross_fit
from capfilt.filter.texts import as_one_array, count_words, to_floats

NAME = "mix"
# Log-odds of probabilities below it, and above 1 - it, are cut.
SMALLEST = 1e-6


@dataclass(frozen=True)
class Mix:
    """The computed score `mix`; its settings are the coefficients."""

    # the features before those of each source, see `_base_features`
    columns: list[str]
    # columns that enter as log-odds
    probabilities: list[str]
    # column -> value that replaces a missing one
    means: dict[str, float]
    # sources with weights of their own
    sources: list[str]
    # feature -> coefficient
    weights: dict[str, float]
    bias: float
    # labels, and the AUC of each source on held-out pictures; recorded for readers
    measured: dict[str, Any] = field(default_factory=dict)
    name = NAME

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            name: getattr(self, name)
            for name in ("columns", "probabilities", "means", "sources", "weights", "bias", "measured")
        }

    def compute(self, shard: str, scores: pa.Table) -> np.ndarray:
        """Return the probability that each text matches its picture; NaN for a text without an ITM score."""
        values = {name: to_floats(scores[name]) for name in self.columns}
        features = self._features(values, scores["text"], scores["source"])
        logit = self.bias + sum(weight * features[name] for name, weight in self.weights.items())
        return np.where(np.isnan(to_floats(scores["itm"])), np.nan, 1 / (1 + np.exp(-np.clip(logit, -50, 50))))

    def _features(
        self, values: Mapping[str, np.ndarray], text: pa.ChunkedArray, source: pa.ChunkedArray
    ) -> dict[str, np.ndarray]:
        """Return each feature as an array of one number per row."""
        words = count_words(text)
        base = {"words": words.astype(float), "log_words": np.log1p(words)}
        for name in self.columns:
            missing = np.isnan(values[name])
            base[name] = np.where(missing, self.means[name], _transform(values[name], name in self.probabilities))
            base[f"{name}:missing"] = missing.astype(float)
        features = dict(base)
        for of_source in self.sources:
            rows = as_one_array(pc.equal(source, of_source)).to_numpy(zero_copy_only=False)
            features[f"source:{of_source}"] = rows.astype(float)
            features |= {f"{name}:{of_source}": np.where(rows, feature, 0.0) for name, feature in base.items()}
        return features


def learn_mix(labelled: LabelledTexts, columns: Sequence[str], sources: Sequence[str]) -> tuple[Mix, np.ndarray]:
    """Return the mix of score `columns`, and a held-out value per label from a fit without its picture.

    Labels of texts without an ITM score have NaN. Raises ValueError for too few labels, in all or of a source.
    """
    values = {name: labelled.column(name) for name in columns}
    used = ~np.isnan(values["itm"])
    of_source = Counter(labelled.rows.filter(pa.array(used))["source"].to_pylist())
    without = [source for source in sources if of_source[source] < MIN_LABELS]
    if without:
        raise ValueError(
            f"mix needs at least {MIN_LABELS} labels of each source, and {without[0]} has {of_source[without[0]]}; "
            "label more of its texts, or leave it out with --sources."
        )
    probabilities, means = [], {}
    for name in columns:
        known = values[name][used & ~np.isnan(values[name])]
        if len(known) and known.min() >= 0 and known.max() <= 1:
            probabilities.append(name)
        means[name] = float(_transform(known, name in probabilities).mean()) if len(known) else 0.0
    columns = [name for name in columns if not np.isnan(values[name][used]).all()]
    empty = Mix(columns, probabilities, means, list(sources) if len(sources) > 1 else [], {}, 0.0)
    features = empty._features(values, labelled.rows["text"], labelled.rows["source"])
    matrix = np.stack(list(features.values()), axis=1)
    fit = cross_fit(matrix[used], labelled.match[used], labelled.fold[used])
    held_out = np.full(len(used), np.nan)
    held_out[used] = 1 / (1 + np.exp(-fit.held_out))
    measured = {
        "labels": int(used.sum()),
        "auc": {name: list(auc) for name, auc in labelled.auc(held_out, sources).items()},
    }
    weights = {name: float(weight) for name, weight in zip(features, fit.model.weights, strict=True) if weight}
    return Mix(columns, probabilities, means, empty.sources, weights, fit.model.bias, measured), held_out


def sum_scores(tables: Iterable[tuple[str, pa.Table]]) -> Mix:
    """Return the mix without labels, from the scores of all shards. Raises ValueError without captions."""
    logits, confidences = [], []
    for _, table in tables:
        itm, confidence = to_floats(table["itm"]), to_floats(table["confidence"])
        rows = ~np.isnan(itm) & ~np.isnan(confidence)
        logits.append(_transform(itm[rows], is_probability=True))
        confidences.append(confidence[rows])
    logit, confidence = np.concatenate(logits), np.concatenate(confidences)
    if not len(confidence) or not confidence.std():
        raise ValueError("mix without labels needs captions with a confidence, and there are none; give --labels FILE.")
    weight, median = float(logit.std() / confidence.std()), float(np.median(confidence))
    weights, means = {"itm": 1.0, "confidence": weight}, {"itm": 0.0, "confidence": median}
    return Mix(["itm", "confidence"], ["itm"], means, [], weights, -weight * median)


def _transform(values: np.ndarray, is_probability: bool) -> np.ndarray:
    if not is_probability:
        return values
    cut = np.clip(values, SMALLEST, 1 - SMALLEST)
    return np.log(cut / (1 - cut))
