"""Numbers that papers report: retrieval recall, caption scores, ROC AUC.

Recalls and caption scores are in percent, as the papers print them; the area under a ROC curve is in 0..1.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
NEGATION = re.compile(r"n't\b")
TOKEN = re.compile(r"n't|'\w+|\w+(?:-\w+)*")


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


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-4, ROUGE-L and CIDEr of one caption a picture against its references, in percent (CIDEr may pass 100).

    The scorers are those of COCO (pycocoevalcap). METEOR and SPICE are left out: both need Java. So does COCO's
    tokenizer, in whose place stands `tokenize`; scores differ from the official ones where the two split differently.
    """
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} captions cannot be scored against references of {len(references)} pictures"
        )
    if not hypotheses:
        raise ValueError("there are no captions to score")
    bare = [row for row, own in enumerate(references) if not own]
    if bare:
        raise ValueError(f"picture {bare[0]} has no reference caption")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError("caption scores need pycocoevalcap: pip install 'capfilt[eval]'") from error
    found = {row: [tokenize(text)] for row, text in enumerate(hypotheses)}
    truth = {row: [tokenize(text) for text in own] for row, own in enumerate(references)}
    return {
        "BLEU-4": 100.0 * float(Bleu(4).compute_score(truth, found, verbose=0)[0][3]),
        "ROUGE-L": 100.0 * float(Rouge().compute_score(truth, found)[0]),
        "CIDEr": 100.0 * float(Cider().compute_score(truth, found)[0]),
    }


def tokenize(text: str) -> str:
    """Lower-case words joined by spaces, punctuation dropped: "A dog's toy, isn't it?" -> "a dog 's toy is n't it".

    As the Penn Treebank does: possessives and "n't" stand alone, hyphenated words stay whole.
    """
    return " ".join(TOKEN.findall(NEGATION.sub(" n't", text.lower().replace("’", "'"))))


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
