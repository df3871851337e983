"""Numbers that papers report: retrieval recall, ROC AUC (for captions see `caption_scores.py`).

Recalls are in percent, as the papers print them; the area under a ROC curve is in 0..1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
NEVER = torch.iinfo(torch.long).max  # rank of a right answer that is not among the candidates


def retrieval_ranks(scores: Tensor, right: Tensor) -> Tensor:
    """By query (row of `scores` (R, K)), how many wrong candidates score at least as high as the best `right` one.

    A tie is no hit: whatever is wrong and scores as high as the right answer counts as ranked before it, so a constant
    score finds nothing. A query with no right candidate has rank NEVER.
    """
    if scores.shape != right.shape:
        raise ValueError(f"shapes do not fit: scores {tuple(scores.shape)}, right {tuple(right.shape)}")
    if scores.isnan().any():
        raise ValueError("retrieval scores hold NaN: the model's features are not finite")
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~right).sum(dim=1).where(right.any(dim=1), NEVER)


def retrieval_recall(ranks_i2t: Tensor, ranks_t2i: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 of texts by image and of images by text, with `mean_recall`, the mean of all six."""
    ranks = {"i2t": ranks_i2t, "t2i": ranks_t2i}
    recalls = {
        f"{way}_r@{k}": 100.0 * float((rank < k).double().mean()) for way, rank in ranks.items() for k in RECALL_AT
    }
    return recalls | {"mean_recall": sum(recalls.values()) / len(recalls)}


def roc_auc(scores: Sequence[float] | Tensor | np.ndarray, labels: Sequence[bool] | Tensor | np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting one half; NaN unless both kinds are there."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(sizes) - (sizes - 1) / 2)[group]  # 1-based, ties share the middle of their ranks
    return float((mean_rank[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
