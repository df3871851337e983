"""Gauges of a round's texts, from the tables of its filtered set alone.

A loop that learns from its own texts loses rare words and variety before its averages fall (arXiv 2505.08803).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from capfilt.shards.format import WEB

RARE_SHARE = 0.05  # share of the words of the human captions, counted with repetitions, that the rarest ones make up
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff_]+")  # a Chinese character is a word


def split_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def rare_words(texts: Iterable[str]) -> set[str]:
    """Return the rarest words of texts, which together make up RARE_SHARE of all words."""
    counts = Counter(word for text in texts for word in split_words(text))
    limit, total, rare = RARE_SHARE * counts.total(), 0, set()
    for word, number in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        total += number
        if total > limit:
            break
        rare.add(word)
    return rare


def gauge_texts(filtered: Path, source: str, rare: set[str]) -> dict[str, Any]:
    """Return the gauges of a round from its filtered set; `source` names the captions of the round.

    The kept shares count texts of this round's captions and of the web; the others describe the kept captions.
    """
    texts: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    captions: list[str] = []
    for path in sorted(filtered.glob("*.parquet")):
        table = pq.read_table(path, columns=["source", "text", "keep"])
        for origin, text, keep in zip(*(column.to_pylist() for column in table.columns), strict=True):
            texts[origin] += 1
            kept[origin] += keep
            if keep and origin == source:
                captions.append(text)
    words = [split_words(caption) for caption in captions]
    bigrams = [pair for caption in words for pair in itertools.pairwise(caption)]
    used = {word for caption in words for word in caption} & rare
    return {
        "kept": sum(kept.values()),
        "kept_share_web": _share(kept[WEB], texts[WEB]),
        "kept_share_captions": _share(kept[source], texts[source]),
        "distinct_captions": _share(len(set(captions)), len(captions)),
        "distinct_bigrams": len(set(bigrams)),
        "rare_word_recall": _share(len(used), len(rare)),
        "words_per_caption": _share(sum(map(len, words)), len(words)),
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
