"""Drawing tokens from the nucleus by inverse CDF."""

from __future__ import annotations

import torch

from blipcore.generate.nucleus import draw_tokens


def draw(probs: list[float], ids: list[int], noise: list[float], top_p: float) -> list[int]:
    rows = len(noise)
    table, tokens = torch.tensor([probs] * rows), torch.tensor([ids] * rows)
    return draw_tokens(table, tokens, torch.tensor(noise, dtype=torch.float64), top_p, vocab_size=10).tolist()


def test_tokens_are_drawn_in_the_order_of_ids() -> None:
    noise = [0.0, 0.24, 0.26, 0.49, 0.51, 0.999]
    assert draw([0.5, 0.25, 0.25], [7, 2, 4], noise, top_p=1.0) == [2, 2, 4, 4, 7, 7]


def test_the_token_that_crosses_top_p_belongs_to_the_nucleus() -> None:
    noise = [0.0, 0.3, 0.4, 0.999]
    assert draw([0.5, 0.25, 0.25], [7, 2, 4], noise, top_p=0.6) == [2, 2, 7, 7]
    assert draw([0.5, 0.25, 0.25], [7, 2, 4], noise, top_p=0.4) == [7, 7, 7, 7]


def test_equal_tokens_in_another_order_give_the_same_draw() -> None:
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    assert draw([0.5, 0.25, 0.25], [7, 2, 4], noise, 1.0) == draw([0.5, 0.25, 0.25], [7, 4, 2], noise, 1.0)


def test_the_largest_noise_draws_no_token_outside_the_nucleus() -> None:
    assert draw([0.5, 0.25, 0.25], [0, 2, 9], [1 - 2**-53], top_p=0.6) == [2]
