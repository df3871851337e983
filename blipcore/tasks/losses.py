"""The three objectives of BLIP as functions of tensors (paper section 3.2): ITC, ITM with hard negatives, LM.

Nothing here has parameters, draws data or touches a queue; the tasks put the pieces together.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Negatives = Literal["multinomial", "argmax"]
IGNORE = -100  # label of positions that the LM loss skips


def clamp_temperature(temp: Tensor) -> None:
    """Keep the learned temperature in [0.001, 0.5], in place and outside the graph, as the official code does."""
    with torch.no_grad():
        temp.clamp_(0.001, 0.5)


def soft_targets(momentum_logits: Tensor, hard: Tensor, alpha: float) -> Tensor:
    """ITC targets (B, K): `alpha` of the momentum model's belief, the rest on the known positives."""
    if alpha == 0.0:
        return hard
    return alpha * F.softmax(momentum_logits, dim=1) + (1 - alpha) * hard


def itc_loss(logits_i2t: Tensor, logits_t2i: Tensor, targets_i2t: Tensor, targets_t2i: Tensor) -> Tensor:
    """Mean of the two cross-entropies between soft targets and similarity logits, each (B, K)."""
    i2t = -(F.log_softmax(logits_i2t, dim=1) * targets_i2t).sum(1).mean()
    t2i = -(F.log_softmax(logits_t2i, dim=1) * targets_t2i).sum(1).mean()
    return (i2t + t2i) / 2


def sample_negatives(weights: Tensor, forbidden: Tensor, how: Negatives, first: int = 0) -> Tensor:
    """For each row of `weights` (B, P) one column that is not `forbidden`, drawn in proportion to its weight.

    A row whose every weight is zero (underflow, or a batch of one text) draws evenly among the columns of the other
    samples, where the official code stops with a multinomial error; row 0's own column is `first`. "argmax" takes the
    heaviest, for golden tests.
    """
    weights = weights.masked_fill(forbidden, 0.0)
    others = 1.0 - torch.eye(*weights.shape, device=weights.device).roll(first, 1)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, others)
    if how == "argmax":
        return weights.argmax(1)
    # The heaviest of weight / Exp(1) is a draw in proportion to weight. `torch.multinomial` does the same, but first
    # checks its input, for which the host waits for the device.
    return (weights / torch.empty_like(weights).exponential_()).argmax(1)


def itm_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Mean cross-entropy of match logits (R, 2); `matched` (R,) is 1 for true pairs, 0 for negatives."""
    return F.cross_entropy(logits, matched)


def text_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Next-token cross-entropy as in `lm_loss`, summed over each text: (B,)."""
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
        reduction="none",
    )
    return losses.view(len(labels), -1).sum(1)


def lm_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Next-token cross-entropy with label smoothing over the whole vocabulary, mean over positions with a label.

    `logits` (B, L, V) at every position, `labels` (B, L) the token at that position, IGNORE where it is not scored:
    the shift by one happens here.
    """
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE, label_smoothing=smoothing
    )


def scored(labels: Tensor) -> Tensor:
    """How many positions of `labels` (B, L) `lm_loss` takes the mean over."""
    return (labels[:, 1:] != IGNORE).sum()
