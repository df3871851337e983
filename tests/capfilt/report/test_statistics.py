"""Statistics of a filtered set agree with its tables."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from filtered_set import filter_set
from folders import rows_of

from capfilt.filter.decide import KEPT
from capfilt.report.statistics import MAX_WORDS_SHOWN, LowestRows


def test_texts_are_counted_by_source_and_reason(filtered: Path, content: dict[str, Any]) -> None:
    rows, (result,) = rows_of(filtered), content["datasets"]
    expected = Counter((row["source"], row["reason"]) for row in rows)
    assert len({reason for _, reason in expected}) >= 3  # kept, itm<0.5, no_text at least
    counts = {(source["name"], KEPT): source["kept"] for source in result["sources"]}
    counts |= {(s["name"], reason): number for s in result["sources"] for reason, number in s["dropped"].items()}
    assert counts == expected
    assert sum(source["texts"] for source in result["sources"]) == len(rows)
    assert result["pictures"] == len({row["key"] for row in rows})
    assert result["pictures_kept"] == len({row["key"] for row in rows if row["keep"]})
    assert result["downloads"] == {"ok": 80, "not_found": 6}


def test_histograms_count_every_score(filtered: Path, content: dict[str, Any]) -> None:
    (result,) = content["datasets"]
    for name, histogram in result["scores"].items():
        for number, source in enumerate(["web", "c"]):
            scores = [row[name] for row in rows_of(filtered) if row["source"] == source and row[name] is not None]
            assert sum(histogram["counts"][number]) == len(scores)
            expected, _ = np.histogram(np.array(scores), [*histogram["bins"], np.inf])
            assert histogram["counts"][number] == expected.tolist()


def test_the_tail_of_the_itm_histogram_is_what_filter_keeps(filtered: Path, content: dict[str, Any]) -> None:
    (result,) = content["datasets"]
    bins = result["scores"]["itm"]["bins"]
    for number, threshold in enumerate((0.0, 0.3, 0.5, 0.999)):
        other = filter_set(filtered.parents[1], f"again{number}", threshold=threshold)
        kept = Counter(row["source"] for row in rows_of(other) if row["keep"])
        for index, source in enumerate(["web", "c"]):
            assert sum(result["decided_by_score"][index][bins.index(threshold) :]) == kept[source]


def test_length_and_variety_of_texts(filtered: Path, content: dict[str, Any]) -> None:
    by_column = {(row["source"], row["kept"]): row for row in content["datasets"][0]["texts"]}
    rows = [row for row in rows_of(filtered) if row["reason"] != "no_text" and row["source"] == "c"]
    for kept in (False, True):
        texts = [row["text"].split() for row in rows if row["keep"] or not kept]
        column = by_column["c", kept]
        assert column["texts"] == column["counted_on"] == len(texts)
        assert column["mean_words"] == pytest.approx(sum(map(len, texts)) / len(texts))
        assert column["vocabulary"] == len({word for text in texts for word in text})
        bigrams = [bigram for text in texts for bigram in itertools.pairwise(text)]
        assert column["distinct"][1] == pytest.approx(len(set(bigrams)) / len(bigrams))
        times = Counter(map(tuple, texts))
        assert column["repeated"] == pytest.approx(sum(n for n in times.values() if n > 1) / len(texts))
    assert by_column["web", False]["lengths"][MAX_WORDS_SHOWN] == 1  # the text of 300 words


def test_texts_are_counted_by_host(filtered: Path, content: dict[str, Any]) -> None:
    web = [row for row in rows_of(filtered) if row["source"] == "web"]
    expected = Counter(urlsplit(row["url"]).hostname.removeprefix("www.") for row in web)
    kept = Counter(urlsplit(row["url"]).hostname.removeprefix("www.") for row in web if row["keep"])
    hosts = content["datasets"][0]["hosts"]
    assert hosts["count"] == len(expected)
    assert {row["host"]: (row["web"], row["web_kept"]) for row in hosts["largest"]} == {
        host: (number, kept[host]) for host, number in expected.items()
    }


def test_lowest_rows_keeps_the_rows_of_lowest_priority() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    values[::7] = np.nan
    lowest = LowestRows(25)
    for start in range(0, 1000, 90):
        part = values[start : start + 90]
        lowest.offer(pa.table({"value": part}), part)
    assert lowest.rows is not None
    assert lowest.rows["value"].to_pylist() == sorted(values[~np.isnan(values)])[:25]
