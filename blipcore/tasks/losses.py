"""BLIP's three objectives (paper section 3.2) as functions of tensors: ITC, ITM with hard negatives, LM."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Negatives = Literal["multinomial", "argmax"]
IGNORE_INDEX = -100  # label of positions without LM loss


def clamp_temperature(temp: Tensor) -> None:
    """Clamp the learned temperature to [0.001, 0.5] in place, without gradient, as the official code does."""
    with torch.no_grad():
        temp.clamp_(0.001, 0.5)


def soft_targets(momentum_logits: Tensor, hard: Tensor, alpha: float) -> Tensor:
    """Return ITC targets (B, K): `alpha` times the momentum encoders' distribution plus the rest of `hard`."""
    if alpha == 0.0:
        return hard
    return alpha * F.softmax(momentum_logits, dim=1) + (1 - alpha) * hard


def itc_loss(logits_i2t: Tensor, logits_t2i: Tensor, targets_i2t: Tensor, targets_t2i: Tensor) -> Tensor:
    """Return the mean of both cross-entropies between soft targets and similarity logits, each (B, K)."""
    i2t = -(F.log_softmax(logits_i2t, dim=1) * targets_i2t).sum(1).mean()
    t2i = -(F.log_softmax(logits_t2i, dim=1) * targets_t2i).sum(1).mean()
    return (i2t + t2i) / 2


def sample_negatives(weights: Tensor, forbidden: Tensor, method: Negatives, first: int = 0) -> Tensor:
    """Draw a column (B,) per row of `weights` (B, P) that is not `forbidden`, in proportion to the weights.

    The column of row 0's own pair is `first`. A row without weight (underflow, or equal texts) draws evenly from other
    pairs; the official code fails there. "argmax" takes the largest weight, for golden tests.
    """
    weights = weights.masked_fill(forbidden, 0.0)
    other_pairs = 1.0 - torch.eye(*weights.shape, device=weights.device).roll(first, 1)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, other_pairs)
    if method == "argmax":
        return weights.argmax(1)
    # The argmax of weight / Exp(1) is a draw in proportion to the weights. `torch.multinomial` would wait for the
    # device to check its input.
    return (weights / torch.empty_like(weights).exponential_()).argmax(1)


def itm_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Return the mean cross-entropy of match logits (R, 2); `matched` (R,) is 1 for true pairs, 0 for negatives."""
    return F.cross_entropy(logits, matched)


def lm_loss_per_text(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the next-token cross-entropy of `lm_loss` summed over the tokens of each text: (B,)."""
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        label_smoothing=smoothing,
        reduction="none",
    )
    return losses.view(len(labels), -1).sum(1)


def lm_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the mean next-token cross-entropy, with label smoothing over the vocabulary.

    `logits` (B, L, V) and `labels` (B, L) are of the same positions; this function shifts them by one. Labels without
    loss are IGNORE_INDEX.
    """
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        label_smoothing=smoothing,
    )


def count_scored(labels: Tensor) -> Tensor:
    """Return the number of tokens of `labels` (B, L) that `lm_loss` averages over."""
    return (labels[:, 1:] != IGNORE_INDEX).sum()
