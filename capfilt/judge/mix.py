"""The learned score `mix` of a filtered set on a public test, whose texts count as web texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from blipcore.io.storage import to_path
from capfilt.filter.computed import CAPTION_SCORES
from capfilt.filter.mix import Mix
from capfilt.judge.formats import PublicTest
from capfilt.shards.format import WEB
from capfilt.shards.manifest import read_manifest


def open_mix(path: str, columns: Sequence[str]) -> Mix:
    """Return the `mix` of a filtered set, for the score `columns`; ValueError if it has none or needs others."""
    manifest = read_manifest(to_path(path)) or {}
    settings = manifest.get("computed", {}).get(Mix.name)
    if settings is None:
        raise ValueError(
            f"{path} has no learned mix; make one with capfilt filter --threshold auto --labels labels.csv."
        )
    mix = Mix(**settings)
    # a score that only captions have is missing in every other text, and has a weight for that
    lacking = [name for name in {"itm": 0, **dict.fromkeys(mix.columns)} if name not in {*columns, *CAPTION_SCORES}]
    if lacking:
        raise ValueError(
            f"The mix of {path} needs the scores {', '.join(lacking)}; give the same --model, --clip, --judge and "
            "scorer as its scores were made with."
        )
    return mix


def apply_mix(mix: Mix, test: PublicTest, scores: dict[str, list[np.ndarray]]) -> list[np.ndarray]:
    """Return the values of `mix` per case, from the scores of the test by column."""
    texts = [text for case in test.cases for text in case.texts]
    table = {"text": pa.array(texts, pa.string()), "source": pa.repeat(pa.scalar(WEB), len(texts))}
    missing = [np.full(len(case.texts), np.nan) for case in test.cases]
    for name in {"itm": 0, **dict.fromkeys(mix.columns)}:
        table[name] = pa.array(np.concatenate(scores.get(name, missing)))
    values = mix.compute("", pa.table(table))
    return np.split(values, np.cumsum([len(case.texts) for case in test.cases])[:-1])
