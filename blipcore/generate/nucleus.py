"""Nucleus (top-p) sampling of one token per row by inverse CDF, from noise that the caller supplies."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_tokens(probs: Tensor, ids: Tensor, noise: Tensor, top_p: float, vocab_size: int) -> Tensor:
    """Draw a token id per row (R,) from `probs` (R, K) of the tokens `ids` (R, K), likeliest first.

    `noise` (R,) is uniform in [0, 1). The nucleus keeps the token that crosses `top_p`. The CDF is computed in double
    precision and in the order of ids, so that rounding in another batch size, which may swap near-equal tokens, does
    not change the draw.
    """
    probs = probs.double()
    nucleus = probs.masked_fill(probs.cumsum(1) - probs > top_p, 0.0)
    cdf = nucleus.new_zeros(len(nucleus), vocab_size).scatter_(1, ids, nucleus).cumsum(1)
    total = cdf[:, -1:]
    target = torch.minimum(noise.to(total.device)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True)[:, 0]
