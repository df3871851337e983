"""Strata: ranges of numbers within each source, and limits that keep the same share of each."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from capfilt.filter.decide import decide
from capfilt.filter.strata import Strata, make_strata, read_columns, shortest_decimal


def test_theshortest_decimal_separates_the_same_texts() -> None:
    assert shortest_decimal(0.4121, 0.4987) == 0.49
    assert shortest_decimal(-1.0, 0.3) == 0
    assert shortest_decimal(0.3, 0.3000001) == 0.3000001
    rng = np.random.default_rng(1)
    for lower, upper in np.sort(rng.random((200, 2)).astype(np.float32)).astype(np.float64):
        assert lower < shortest_decimal(lower, upper) <= upper


def test_ranges_hold_about_the_same_number_of_texts_and_are_named() -> None:
    length = np.random.default_rng(0).integers(1, 21, 1000).astype(float)
    strata = make_strata(["length"], {"length": length}, ["web", "blip"])
    index = strata.locate({"length": length}, np.zeros(1000, int))
    sizes = np.bincount(index)[::2]
    assert len(sizes) == 5 and sizes.min() > 150
    assert strata.names[:3] == ["length 1 to 4, web", "length 1 to 4, blip", "length 5 to 8, web"]
    assert strata.names[-1] == "length 17 or more, blip"
    cosine = make_strata(["itc"], {"itc": np.linspace(-1, 1, 101)}, ["web"])
    assert cosine.names[0] == "itc below -0.6, web"
    assert cosine.locate({"itc": np.array([np.nan, -1.0, 1.0])}, np.zeros(3, int)).tolist() == [0, 0, 4]


def test_equal_numbers_are_one_range() -> None:
    strata = make_strata(["length"], {"length": np.full(9, 7.0)}, ["web"])
    assert strata.names == ["any length, web"]


def test_each_stratum_keeps_the_share_that_the_threshold_keeps_of_its_source() -> None:
    rng = np.random.default_rng(0)
    length, source = rng.integers(1, 11, 4000).astype(float), rng.integers(0, 2, 4000)
    # long texts have low scores, and web texts lower ones
    values = rng.random(4000) - 0.05 * length - 0.2 * (source == 0)
    strata = make_strata(["length"], {"length": length}, ["web", "blip"])
    stratum = strata.locate({"length": length}, source)
    limits = np.array(strata.equal_shares(values, stratum, 0.2))
    kept = values >= limits[stratum]
    for index in range(len(strata.names)):
        of_source = values[source == index % 2] >= 0.2
        assert kept[stratum == index].mean() == pytest.approx(of_source.mean(), abs=0.01)
    assert (values >= 0.2)[length == 10].mean() < 0.6 * (values >= 0.2).mean()  # one threshold drops long texts
    assert not (values >= np.array(strata.equal_shares(values, stratum, 2.0))[stratum]).any()
    assert (values >= np.array(strata.equal_shares(values, stratum, -9.0))[stratum]).all()


def test_decide_applies_the_limit_of_the_stratum() -> None:
    strata = Strata(["length"], ["web"], {"length": [3.0]}, [0.5, 0.2])
    restored = Strata.from_settings(json.loads(json.dumps(strata.settings)))
    table = pa.table(
        {
            "key": ["a", "b", "c", "d"],
            "source": ["web"] * 4,
            "index": pa.array([0] * 4, pa.int32()),
            "text": ["a dog", "a cat", "a dog on a cat", "a cat on a dog"],
            "itm": pa.array([0.4, 0.6, 0.3, 0.1], pa.float32()),
            "error": pa.nulls(4, pa.string()),
        }
    )
    below = "itm<limit of its stratum"
    assert decide(table, {"itm": 0.3}, strata=restored).to_pylist() == [below, "kept", "kept", below]
    assert read_columns(table, ["length", "itm"])["length"].tolist() == [2, 2, 5, 5]
