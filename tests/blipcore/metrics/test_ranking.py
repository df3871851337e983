"""Metrics against hand-counted cases and slow definitions."""

import math
import random

import numpy as np
import pytest
import torch

from blipcore.metrics.ranking import NEVER, retrieval_ranks, retrieval_recall, roc_auc


def recall_of(i2t: torch.Tensor, t2i: torch.Tensor, owner: torch.Tensor) -> dict[str, float]:
    """Recall from scores (I, T) and (T, I); `owner` (T,) is the image of each text."""
    right = owner[None] == torch.arange(len(i2t))[:, None]
    return retrieval_recall(retrieval_ranks(i2t, right), retrieval_ranks(t2i, right.T))


def test_perfect_retrieval() -> None:
    owner = torch.tensor([0, 0, 1, 2])
    scores = (torch.arange(3)[:, None] == owner[None]).float()
    assert set(recall_of(scores, scores.T, owner).values()) == {100.0}


def test_recall_equals_a_count_by_hand() -> None:
    """12 images with a text each; image 0's text ranks 2nd, image 1's 6th, image 2's 11th, the others 1st."""
    scores = torch.eye(12) * 10
    for image, better in ((0, 1), (1, 5), (2, 10)):
        wrong_texts = [text for text in range(12) if text != image][:better]
        scores[image, wrong_texts] = 11.0
    recall = recall_of(scores, torch.eye(12), torch.arange(12))
    assert recall["i2t_r@1"] == pytest.approx(900 / 12)
    assert recall["i2t_r@5"] == pytest.approx(1000 / 12)
    assert recall["i2t_r@10"] == pytest.approx(1100 / 12)
    assert recall["t2i_r@1"] == 100.0
    assert recall["mean_recall"] == pytest.approx((900 + 1000 + 1100 + 3 * 1200) / 12 / 6)


def test_an_image_is_ranked_by_its_best_text() -> None:
    i2t = torch.tensor([[0.1, 0.9, 0.5]])  # texts 0 and 1 are right
    owner = torch.tensor([0, 0, 1])
    i2t = torch.cat([i2t, torch.tensor([[0.0, 0.0, 1.0]])])
    assert recall_of(i2t, i2t.T, owner)["i2t_r@1"] == 100.0


@pytest.mark.parametrize("value", [0.0, -100.0, float("-inf")])
def test_ties_count_against_the_match(value) -> None:
    """With ties as hits, a constant score would have a recall of 100."""
    scores = torch.full((20, 20), value)
    assert set(recall_of(scores, scores, torch.arange(20)).values()) == {0.0}
    scores[0, 0] = 1.0
    assert recall_of(scores, scores, torch.arange(20))["i2t_r@1"] == pytest.approx(5.0)


def test_recall_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    owner = torch.from_numpy(np.concatenate([np.arange(30), rng.integers(0, 30, 60)]))
    i2t, t2i = (torch.from_numpy(rng.integers(0, 40, shape).astype(np.float32)) for shape in ((30, 90), (90, 30)))
    i2t += 25 * (owner[None] == torch.arange(30)[:, None])
    recall = recall_of(i2t, t2i, owner)
    for k in (1, 5, 10):
        image_hits, text_hits = 0, 0
        for image in range(30):
            best = max(i2t[image, text] for text in range(90) if owner[text] == image)
            image_hits += sum(bool(i2t[image, t] >= best) for t in range(90) if owner[t] != image) < k
        for text in range(90):
            match = t2i[text, owner[text]]
            text_hits += sum(bool(t2i[text, i] >= match) for i in range(30) if i != owner[text]) < k
        assert recall[f"i2t_r@{k}"] == pytest.approx(100 * image_hits / 30)
        assert recall[f"t2i_r@{k}"] == pytest.approx(100 * text_hits / 90)


def test_a_match_that_is_no_candidate_is_never_found() -> None:
    ranks = retrieval_ranks(torch.eye(2), torch.tensor([[True, False], [False, False]]))
    assert ranks.tolist() == [0, NEVER]
    assert retrieval_recall(ranks, ranks)["i2t_r@10"] == 50.0


def test_scores_of_another_shape_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        retrieval_ranks(torch.eye(3), torch.eye(4) > 0)
    with pytest.raises(ValueError, match="NaN"):
        retrieval_ranks(torch.eye(3) * torch.nan, torch.eye(3) > 0)


def test_roc_auc_is_the_share_of_ordered_pairs() -> None:
    rng = random.Random(0)
    scores = [rng.randint(0, 9) / 9 for _ in range(60)]  # many ties
    labels = [rng.random() < 0.4 for _ in scores]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, positive in zip(scores, labels, strict=True)
        for b, other in zip(scores, labels, strict=True)
        if positive and not other
    ]
    assert roc_auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    assert roc_auc(torch.tensor(scores), torch.tensor(labels)) == roc_auc(np.array(scores), np.array(labels))
    assert roc_auc([0.1, 0.9], [False, True]) == 1.0 and roc_auc([0.9, 0.1], [False, True]) == 0.0
    assert roc_auc([0.5, 0.5], [False, True]) == 0.5
    assert math.isnan(roc_auc([0.1, 0.2], [True, True]))
