"""Verdicts: the rules one by one, and agreement with a plain loop on random tables."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from blipcore.model.tokenizer import clean_caption
from capfilt.filter.decide import BestTexts, decide, decided_by_score
from capfilt.shards.format import filtered_schema

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "source", "text", "error")),
        ("itm", pa.float32()),
        ("clip", pa.float32()),
    ]
)


def test_the_reason_is_the_first_that_applies() -> None:
    rows = [
        ("a", "A red dog.", None, 0.9, 0.30, "kept"),
        ("a", "a red  dog", None, 0.9, 0.30, "duplicate"),
        ("a", "a blue dog", None, 0.5, 0.30, "kept"),
        ("a", "a cat", None, 0.4999, 0.30, "itm<0.5"),
        ("a", "a tree", None, 0.9, 0.10, "clip<0.25"),
        ("a", "two trees", None, 0.1, 0.10, "itm<0.5"),
        ("a", "", None, None, None, "no_text"),
        ("a", None, None, None, None, "no_text"),
        ("a", " !!! ", None, None, None, "no_text"),
        ("b", "a red dog", None, 0.9, 0.30, "kept"),  # another picture, so no duplicate
        ("c", "a red dog", "truncated", None, None, "undecodable: truncated"),
        ("c", "", "truncated", None, None, "undecodable: truncated"),
        ("d", "a score that is not a number", None, float("nan"), 0.30, "itm<0.5"),
        ("d", "红色的狗", None, 0.7, 0.30, "kept"),
    ]
    names = ("key", "text", "error", "itm", "clip")
    table = pa.table(dict(zip(names, zip(*(row[:-1] for row in rows), strict=True), strict=True)))
    assert decide(table, {"itm": 0.5, "clip": 0.25}).to_pylist() == [row[-1] for row in rows]
    assert decide(table, {"itm": 0.0}).to_pylist()[:6] == ["kept", "duplicate", "kept", "kept", "kept", "kept"]
    assert decide(SCHEMA.empty_table(), {"itm": 0.5}, best=BestTexts(1)).to_pylist() == []


def test_a_threshold_is_compared_as_typed() -> None:
    """In float32, 0.1 is slightly above the typed 0.1 and 0.7 slightly below."""
    table = pa.table({"key": ["a", "b"], "source": ["web"] * 2, "text": ["x", "y"], "error": [None] * 2}).append_column(
        "itm", pa.array(np.array([0.1, 0.7], np.float32))
    )
    assert decide(table, {"itm": 0.1}).to_pylist() == ["kept", "kept"]
    assert decide(table, {"itm": 0.7}).to_pylist() == ["itm<0.7", "itm<0.7"]


def test_the_best_captions_of_a_picture_are_kept() -> None:
    itm = [0.6, 0.9, 0.7, 0.4, 0.8]
    table = pa.table(
        {
            "key": ["a"] * 5,
            "source": ["blip", "blip", "blip", "blip", "web"],
            "text": ["red dog", "blue cat", "red cat", "green dog", "a dog"],
            "error": pa.nulls(5, pa.string()),
            "itm": itm,
        }
    )
    assert decide(table, {"itm": 0.5}, best=BestTexts(1)).to_pylist() == [
        "not_best",
        "kept",
        "not_best",
        "itm<0.5",
        "kept",
    ]
    assert decide(table, {"itm": 0.5}, best=BestTexts(2)).to_pylist() == ["not_best", "kept", "kept", "itm<0.5", "kept"]


def random_table(rng: random.Random, rows: int) -> pa.Table:
    table = [
        {
            "key": str(rng.randrange(rows // 4 + 1)),
            "source": rng.choice(["web", "c1", "c2"]),
            "text": rng.choice(["a dog", "A dog.", "a cat", "two cats", "", None, " . ", "Σ", "σ"]),
            "error": rng.choice([None] * 9 + ["truncated"]),
            "itm": rng.choice([0.0, 0.25, 0.5, 0.75, 1.0, rng.random(), None]),
            "clip": rng.random() / 2,
        }
        for _ in range(rows)
    ]
    return pa.Table.from_pylist(table, schema=SCHEMA)


def decide_row_by_row(table: pa.Table, limits: dict[str, float], best: BestTexts) -> list[str]:
    reasons: list[str] = []
    earlier: set[tuple[str, str]] = set()
    groups = defaultdict(list)
    for position, row in enumerate(table.to_pylist()):
        words = clean_caption(row["text"] or "")
        failed = [f"{name}<{limit:g}" for name, limit in limits.items() if not (row[name] or -1) >= limit]
        if row["error"]:
            reasons.append("undecodable: " + row["error"])
        elif not words:
            reasons.append("no_text")
        elif (row["key"], words) in earlier:
            reasons.append("duplicate")
        else:
            earlier.add((row["key"], words))
            reasons.append(failed[0] if failed else "kept")
            if not [reason for reason in failed if not reason.startswith("itm<")]:
                group = row["key"], None if best.across_sources else row["source"]
                groups[group].append((-math.inf if row[best.score] is None else row[best.score], -position))
    for ranked in groups.values():
        for _, negative in sorted(ranked, reverse=True)[best.number or len(ranked) :]:
            if reasons[-negative] == "kept":
                reasons[-negative] = "not_best"
    return reasons


BESTS = [BestTexts(), BestTexts(1), BestTexts(2), BestTexts(1, "clip"), BestTexts(2, "clip", across_sources=True)]


@pytest.mark.parametrize("best", BESTS)
def test_decide_agrees_with_a_plain_loop(best: BestTexts) -> None:
    for seed in range(20):
        table = random_table(random.Random(seed), 120)
        limits = {"itm": 0.5, "clip": 0.2} if seed % 2 else {"itm": 0.5}
        assert decide(table, limits, best).to_pylist() == decide_row_by_row(table, limits, best)


@pytest.mark.parametrize("best", BESTS)
def test_decided_by_score_agrees_with_decide_at_every_threshold(best: BestTexts) -> None:
    table = random_table(random.Random(3), 400)
    limits = {"itm": 0.5, "clip": 0.1}
    reasons = decide(table, limits, best)
    filtered = table.append_column("reason", reasons).append_column("index", pa.array(range(400), pa.int32()))
    assert set(filtered_schema(["itm", "clip"]).names) - set(filtered.column_names) == {"keep", "url", "sha256"}
    mask = decided_by_score(filtered, limits, best)
    itm = np.nan_to_num(table["itm"].to_numpy(), nan=-1)
    for threshold in (0.001, 0.25, 0.5, 0.9):
        kept = decide(table, limits | {"itm": threshold}, best).to_pylist()
        assert ((itm >= threshold) & mask).tolist() == [reason == "kept" for reason in kept]


def test_texts_are_ranked_before_the_itm_threshold_applies() -> None:
    table = pa.table(
        {
            "key": ["a"] * 4,
            "source": ["blip", "blip", "blip", "web"],
            "text": ["red dog", "blue cat", "red cat", "a dog"],
            "error": pa.nulls(4, pa.string()),
            "itm": [0.9, 0.2, 0.8, 0.7],
            "clip": [0.20, 0.30, 0.25, 0.28],
        }
    )
    by_clip = BestTexts(1, "clip")
    assert decide(table, {"itm": 0.1}, by_clip).to_pylist() == ["not_best", "kept", "not_best", "kept"]
    assert decide(table, {"itm": 0.5}, by_clip).to_pylist() == ["not_best", "itm<0.5", "not_best", "kept"]
    assert decide(table, {"itm": 0.5, "clip": 0.29}, by_clip).to_pylist()[2:] == ["clip<0.29", "clip<0.29"]
    across = BestTexts(2, "clip", across_sources=True)
    assert decide(table, {"itm": 0.1}, across).to_pylist() == ["not_best", "kept", "not_best", "kept"]


def test_a_missing_confidence_is_not_below_its_limit_and_ranks_last() -> None:
    table = pa.table(
        {
            "key": ["a", "a", "a"],
            "source": ["web", "c", "c"],
            "text": ["a web text", "a sure caption", "an unsure caption"],
            "error": pa.array([None] * 3, pa.string()),
            "itm": [0.9, 0.9, 0.9],
            "confidence": [None, -2.0, -4.0],
        }
    )
    limits = {"itm": 0.5, "confidence": -3.0}
    assert decide(table, limits).to_pylist() == ["kept", "kept", "confidence<-3"]
    best = BestTexts(1, "confidence", across_sources=True)
    assert decide(table, limits, best).to_pylist() == ["not_best", "kept", "confidence<-3"]
    filtered = table.append_column("reason", decide(table, limits))
    assert decided_by_score(filtered, limits).tolist() == [True, True, False]
