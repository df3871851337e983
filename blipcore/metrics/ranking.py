"""Ranking metrics: retrieval recall in percent, as papers print it, and the area under a ROC curve, from 0 to 1."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
NEVER = torch.iinfo(torch.long).max  # rank of a match that is not among the candidates


def retrieval_ranks(scores: Tensor, is_match: Tensor) -> Tensor:
    """Return the rank (Q,) of each query's best match: the number of wrong candidates that score at least as high.

    `scores` and `is_match` (Q, K) are of queries and candidates. Ties count against the match, so that a constant score
    finds nothing. A query without a match has rank NEVER. Raises ValueError for NaN.
    """
    if scores.shape != is_match.shape:
        raise ValueError(f"Scores and matches differ in shape: {tuple(scores.shape)} and {tuple(is_match.shape)}.")
    if scores.isnan().any():
        raise ValueError("Retrieval scores hold NaN: the model's features are not finite.")
    best = scores.masked_fill(~is_match, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~is_match).sum(dim=1).where(is_match.any(dim=1), NEVER)


def picture_recall(row: Mapping[str, Any]) -> float:
    """Return the mean recall of a picture in percent, over both directions and recall at 1, 5 and 10.

    `row` has the ranks that `evaluate_retrieval` returns: "text_rank" and "image_ranks", None for not found.
    """
    text, images = (
        np.mean([[rank is not None and rank < k for k in RECALL_AT] for rank in ranks])
        for ranks in ([row["text_rank"]], row["image_ranks"])
    )
    return 50.0 * float(text + images)


def retrieval_recall(ranks_i2t: Tensor, ranks_t2i: Tensor) -> dict[str, float]:
    """Return the recall at 1, 5 and 10 of texts by image and of images by text, and their mean, `mean_recall`."""
    recalls = {}
    for direction, ranks in (("i2t", ranks_i2t), ("t2i", ranks_t2i)):
        for k in RECALL_AT:
            recalls[f"{direction}_r@{k}"] = 100.0 * float((ranks < k).double().mean())
    return recalls | {"mean_recall": sum(recalls.values()) / len(recalls)}


def roc_auc(scores: Sequence[float] | Tensor | np.ndarray, labels: Sequence[bool] | Tensor | np.ndarray) -> float:
    """Return the probability that a positive scores above a negative, ties counting one half.

    NaN if there are no positives or no negatives.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    # Ranks from 1; ties share the mean of their ranks.
    mean_rank = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return float((mean_rank[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
