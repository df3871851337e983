"""Scores -> reasons: the rules one by one, and the same as a plain loop on random tables."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from blipcore.model.tokenizer import clean_caption
from capfilt.filter.decide import Best, decide, hangs_on_itm
from capfilt.shards.format import filtered_schema

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "source", "text", "error")),
        ("itm", pa.float32()),
        ("clip", pa.float32()),
    ]
)


def test_decide_names_the_first_reason_that_holds() -> None:
    judged = [
        ("a", "A red dog.", None, 0.9, 0.30, "kept"),
        ("a", "a red  dog", None, 0.9, 0.30, "duplicate"),
        ("a", "a blue dog", None, 0.5, 0.30, "kept"),
        ("a", "a cat", None, 0.4999, 0.30, "itm<0.5"),
        ("a", "a tree", None, 0.9, 0.10, "clip<0.25"),
        ("a", "two trees", None, 0.1, 0.10, "itm<0.5"),
        ("a", "", None, None, None, "no_text"),
        ("a", None, None, None, None, "no_text"),
        ("a", " !!! ", None, None, None, "no_text"),
        ("b", "a red dog", None, 0.9, 0.30, "kept"),  # of another picture, so no duplicate
        ("c", "a red dog", "truncated", None, None, "undecodable: truncated"),
        ("c", "", "truncated", None, None, "undecodable: truncated"),
        ("d", "nothing can be told", None, float("nan"), 0.30, "itm<0.5"),
        ("d", "红色的狗", None, 0.7, 0.30, "kept"),
    ]
    names = ("key", "text", "error", "itm", "clip")
    table = pa.table({name: [row[place] for row in judged] for place, name in enumerate(names)})
    assert decide(table, {"itm": 0.5, "clip": 0.25}).to_pylist() == [row[-1] for row in judged]
    assert decide(table, {"itm": 0.0}).to_pylist()[:6] == ["kept", "duplicate", "kept", "kept", "kept", "kept"]
    assert decide(SCHEMA.empty_table(), {"itm": 0.5}, best=Best(1)).to_pylist() == []


def test_a_threshold_is_compared_as_the_number_that_was_typed() -> None:
    """0.1 is no float32: a stored score of 0.1 lies above the 0.1 of the command line, one of 0.7 below 0.7."""
    table = pa.table({"key": ["a", "b"], "source": ["web"] * 2, "text": ["x", "y"], "error": [None] * 2}).append_column(
        "itm", pa.array(np.array([0.1, 0.7], np.float32))
    )
    assert decide(table, {"itm": 0.1}).to_pylist() == ["kept", "kept"]
    assert decide(table, {"itm": 0.7}).to_pylist() == ["itm<0.7", "itm<0.7"]


def test_of_several_captions_the_best_are_kept():
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
    assert decide(table, {"itm": 0.5}, best=Best(1)).to_pylist() == ["not_best", "kept", "not_best", "itm<0.5", "kept"]
    assert decide(table, {"itm": 0.5}, best=Best(2)).to_pylist() == ["not_best", "kept", "kept", "itm<0.5", "kept"]


def scrambled(rng: random.Random, rows: int) -> pa.Table:
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


def plainly(table: pa.Table, limits: dict[str, float], best: Best) -> list[str]:
    """The rules as one would say them."""
    reasons, seen = [], set()
    groups = defaultdict(list)
    for place, row in enumerate(table.to_pylist()):
        words = clean_caption(row["text"] or "")
        failed = [f"{name}<{least:g}" for name, least in limits.items() if not (row[name] or -1) >= least]
        if row["error"]:
            reasons.append("undecodable: " + row["error"])
        elif not words:
            reasons.append("no_text")
        elif (row["key"], words) in seen:
            reasons.append("duplicate")
        else:
            seen.add((row["key"], words))
            reasons.append(failed[0] if failed else "kept")
            if not [reason for reason in failed if not reason.startswith("itm<")]:
                of = row["key"], None if best.across else row["source"]
                groups[of].append((-math.inf if row[best.by] is None else row[best.by], -place))
    for group in groups.values():
        for _, place in sorted(group, reverse=True)[best.number or len(group) :]:
            if reasons[-place] == "kept":
                reasons[-place] = "not_best"
    return reasons


BESTS = [Best(), Best(1), Best(2), Best(1, "clip"), Best(2, "clip", across=True)]


@pytest.mark.parametrize("best", BESTS)
def test_decide_agrees_with_a_plain_loop(best: Best) -> None:
    for seed in range(20):
        table = scrambled(random.Random(seed), 120)
        limits = {"itm": 0.5, "clip": 0.2} if seed % 2 else {"itm": 0.5}
        assert decide(table, limits, best).to_pylist() == plainly(table, limits, best)


@pytest.mark.parametrize("best", BESTS)
def test_what_hangs_on_itm_is_what_another_threshold_keeps(best: Best) -> None:
    table = scrambled(random.Random(3), 400)
    limits = {"itm": 0.5, "clip": 0.1}
    reasons = decide(table, limits, best)
    filtered = table.append_column("reason", reasons).append_column("index", pa.array(range(400), pa.int32()))
    assert set(filtered_schema(["itm", "clip"]).names) - set(filtered.column_names) == {"keep", "url", "sha256"}
    open_rows = hangs_on_itm(filtered, limits, best)
    itm = np.nan_to_num(table["itm"].to_numpy(), nan=-1)
    for threshold in (0.001, 0.25, 0.5, 0.9):
        kept = decide(table, limits | {"itm": threshold}, best).to_pylist()
        assert ((itm >= threshold) & open_rows).tolist() == [reason == "kept" for reason in kept]


def test_the_best_by_another_score_are_chosen_before_the_itm_threshold() -> None:
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
    by_clip = Best(1, "clip")
    assert decide(table, {"itm": 0.1}, by_clip).to_pylist() == ["not_best", "kept", "not_best", "kept"]
    assert decide(table, {"itm": 0.5}, by_clip).to_pylist() == ["not_best", "itm<0.5", "not_best", "kept"]
    assert decide(table, {"itm": 0.5, "clip": 0.29}, by_clip).to_pylist()[2:] == ["clip<0.29", "clip<0.29"]
    across = Best(2, "clip", across=True)
    assert decide(table, {"itm": 0.1}, across).to_pylist() == ["not_best", "kept", "not_best", "kept"]
