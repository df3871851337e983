"""Numbers that papers report: retrieval recall, ROC AUC (for captions see `caption_scores.py`).

Recalls are in percent, as the papers print them; the area under a ROC curve is in 0..1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def retrieval_recall(scores_i2t: Tensor, scores_t2i: Tensor, text_to_image: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways, in percent, with `mean_recall`, the mean of all six.

    `scores_i2t` (I, T) ranks texts for each image, `scores_t2i` (T, I) images for each text, `text_to_image` (T,) is
    the image each text belongs to. An image's rank is that of its best text. A tie is no hit: whatever is wrong and
    scores as high as the right answer counts as ranked before it, so a constant score has recall 0.
    """
    images, texts = scores_i2t.shape
    if scores_t2i.shape != (texts, images) or text_to_image.shape != (texts,):
        raise ValueError(
            f"shapes do not fit: i2t {tuple(scores_i2t.shape)}, t2i {tuple(scores_t2i.shape)}, "
            f"text_to_image {tuple(text_to_image.shape)}"
        )
    if scores_i2t.isnan().any() or scores_t2i.isnan().any():
        raise ValueError("retrieval scores hold NaN: the model's features are not finite")
    right = (
        text_to_image.to(scores_i2t.device)[None] == torch.arange(images, device=scores_i2t.device)[:, None]
    )  # (I, T)
    ranks = {"i2t": _pessimistic_ranks(scores_i2t, right), "t2i": _pessimistic_ranks(scores_t2i, right.T)}
    recalls = {
        f"{way}_r@{k}": 100.0 * float((rank < k).double().mean()) for way, rank in ranks.items() for k in RECALL_AT
    }
    return recalls | {"mean_recall": sum(recalls.values()) / len(recalls)}


def _pessimistic_ranks(scores: Tensor, right: Tensor) -> Tensor:
    """By row, how many wrong candidates score at least as high as the best right one."""
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~right).sum(dim=1)


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
