"""Confidence of a captioner in each of its captions: the log-probability, made comparable between lengths.

A captioner records the log-probability of each caption, log p: the sum over its tokens, under the model. It falls with
every token, so it prefers short captions; its mean per token prefers long ones. Confidence divides it by the length
penalty of machine translation (Wu et al., "Google's Neural Machine Translation System", 2016, equation 14):

    confidence = log p / ((5 + n) / 6) ** 0.6        n: the words of the caption, plus its end

It is at most 0 and depends on no other caption. Words are counted because tables do not have the number of tokens; a
character of a script without spaces counts as a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath
from capfilt.filter.texts import as_one_array, count_words, to_floats
from capfilt.shards.manifest import read_manifest
from capfilt.shards.tables import read_table

# Exponent of the length penalty: 0 is the log-probability itself, 1 close to its mean per token.
LENGTH_PENALTY = 0.6


@dataclass(frozen=True)
class Confidence:
    """The computed score `confidence` of captions whose tables have log-probabilities."""

    # source -> folder of its captions
    captions: Mapping[str, AnyPath]
    length_penalty: float = LENGTH_PENALTY
    name = "confidence"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"length_penalty": self.length_penalty}

    def compute(self, shard: str, scores: pa.Table) -> np.ndarray:
        """Return the confidence of each row; NaN for a text of another source, and for an unknown log-probability."""
        logprob = np.full(scores.num_rows, np.nan)
        for source, folder in self.captions.items():
            rows = np.flatnonzero(pc.equal(scores["source"], source).to_numpy(zero_copy_only=False))
            if len(rows):
                names = scores.select(["key", "index"]).take(rows)
                logprob[rows] = _read_logprobs(folder / f"{shard}.parquet", names)
        known, confidence = np.flatnonzero(np.isfinite(logprob)), np.full(scores.num_rows, np.nan)
        confidence[known] = normalize_logprobs(logprob[known], scores["text"].take(known), self.length_penalty)
        return confidence


def normalize_logprobs(
    logprob: np.ndarray, texts: pa.ChunkedArray | pa.Array, length_penalty: float = LENGTH_PENALTY
) -> np.ndarray:
    """Divide the log-probability of each text by its length penalty."""
    return logprob / ((5 + count_words(texts) + 1) / 6) ** length_penalty


def captions_with_logprobs(captions: Mapping[str, AnyPath | None]) -> dict[str, AnyPath]:
    """Return the sources whose texts a captioner wrote; `captions` are the folders of all sources."""
    written = {}
    for source, folder in captions.items():
        if folder is not None and (read_manifest(folder) or {}).get("stage") == "caption":
            written[source] = folder
    return written


def require_logprobs(captions: Mapping[str, AnyPath | None], shard: str, setting: str) -> None:
    """Raise ValueError if the captions of a source in this shard have no log-probabilities and `setting` needs them."""
    for source, folder in captions_with_logprobs(captions).items():
        path = folder / f"{shard}.parquet"
        table = read_table(path, ["text"], optional=["logprob"]) if path.exists() else None
        has_captions = table is not None and table["text"].null_count < table.num_rows
        if table is None or not has_captions:
            continue
        if "logprob" not in table.column_names or table["logprob"].null_count == table.num_rows:
            raise ValueError(
                f"{setting} needs a confidence, but the captions '{source}' have no log-probabilities: their captioner "
                "returned none; leave them out with --sources."
            )


def _read_logprobs(path: AnyPath, rows: pa.Table) -> np.ndarray:
    """Return the log-probability of each row, given its key and index; NaN for an unknown one."""
    table = read_table(path, ["key", "index"], optional=["logprob"])
    if "logprob" not in table.column_names:
        return np.full(rows.num_rows, np.nan)
    logprob = to_floats(table["logprob"])
    if rows.equals(table.select(rows.column_names)):  # the usual order
        return logprob
    row = pc.fill_null(pc.index_in(_row_names(rows), value_set=_row_names(table)), -1).to_numpy()
    return np.append(logprob, np.nan)[row]


def _row_names(table: pa.Table) -> pa.Array:
    """Return index and key of each row as one string."""
    index = as_one_array(table["index"]).cast(pa.string())
    return pc.binary_join_element_wise(index, as_one_array(table["key"]).cast(pa.string()), "/")
