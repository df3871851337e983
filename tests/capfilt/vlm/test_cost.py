"""The cost of a shard is what its models have spent since it began."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from capfilt.vlm.cost import Cost, dollars


def test_each_shard_counts_what_was_spent_since_it_began() -> None:
    paid, free = SimpleNamespace(spent=1.0), SimpleNamespace()
    cost = Cost(paid, free)
    paid.spent += 0.25
    assert cost.since_last() == 0.25 and cost.since_last() == 0.0
    paid.spent += 0.5
    assert cost.since_last() == 0.5 and cost.counts() == {"microdollars": 750_000}
    assert dollars(cost.counts()) == pytest.approx(0.75)


def test_models_without_a_price_leave_no_count() -> None:
    assert Cost(SimpleNamespace()).counts() == {} and dollars({"pictures": 3}) is None
