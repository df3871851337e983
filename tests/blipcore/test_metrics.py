"""Metrics against hand-counted cases, slow definitions and the scorers' own known values."""

import builtins
import math
import random

import numpy as np
import pytest
import torch

from blipcore.metrics import caption_scores, retrieval_recall, roc_auc, tokenize


def test_perfect_retrieval():
    owner = torch.tensor([0, 0, 1, 2])
    scores = (torch.arange(3)[:, None] == owner[None]).float()
    assert set(retrieval_recall(scores, scores.T, owner).values()) == {100.0}


def test_recall_counted_by_hand():
    """12 images with a text each; image 0's text ranks 2nd, image 1's 6th, image 2's 11th, the others 1st."""
    scores = torch.eye(12) * 10
    for image, better in ((0, 1), (1, 5), (2, 10)):
        others = [text for text in range(12) if text != image][:better]
        scores[image, others] = 11.0
    recall = retrieval_recall(scores, torch.eye(12), torch.arange(12))
    assert recall["i2t_r@1"] == pytest.approx(900 / 12)
    assert recall["i2t_r@5"] == pytest.approx(1000 / 12)
    assert recall["i2t_r@10"] == pytest.approx(1100 / 12)
    assert recall["t2i_r@1"] == 100.0
    assert recall["mean_recall"] == pytest.approx((900 + 1000 + 1100 + 3 * 1200) / 12 / 6)


def test_an_image_is_ranked_by_its_best_text():
    i2t = torch.tensor([[0.1, 0.9, 0.5]])  # texts 0 and 1 are right
    owner = torch.tensor([0, 0, 1])
    i2t = torch.cat([i2t, torch.tensor([[0.0, 0.0, 1.0]])])
    assert retrieval_recall(i2t, i2t.T, owner)["i2t_r@1"] == 100.0


@pytest.mark.parametrize("value", [0.0, -100.0, float("-inf")])
def test_ties_are_no_hits(value):
    """A model that scores everything alike knows nothing; optimistic ranks would give it 100."""
    scores = torch.full((20, 20), value)
    assert set(retrieval_recall(scores, scores, torch.arange(20)).values()) == {0.0}
    scores[0, 0] = 1.0
    assert retrieval_recall(scores, scores, torch.arange(20))["i2t_r@1"] == pytest.approx(5.0)


def test_recall_equals_its_definition():
    rng = np.random.default_rng(0)
    owner = torch.from_numpy(np.concatenate([np.arange(30), rng.integers(0, 30, 60)]))
    i2t, t2i = (torch.from_numpy(rng.integers(0, 40, shape).astype(np.float32)) for shape in ((30, 90), (90, 30)))
    i2t += 25 * (owner[None] == torch.arange(30)[:, None])
    recall = retrieval_recall(i2t, t2i, owner)
    for k in (1, 5, 10):
        image_hits, text_hits = 0, 0
        for image in range(30):
            best = max(i2t[image, text] for text in range(90) if owner[text] == image)
            image_hits += sum(bool(i2t[image, t] >= best) for t in range(90) if owner[t] != image) < k
        for text in range(90):
            own = t2i[text, owner[text]]
            text_hits += sum(bool(t2i[text, i] >= own) for i in range(30) if i != owner[text]) < k
        assert recall[f"i2t_r@{k}"] == pytest.approx(100 * image_hits / 30)
        assert recall[f"t2i_r@{k}"] == pytest.approx(100 * text_hits / 90)


def test_scores_must_fit_and_be_numbers():
    with pytest.raises(ValueError, match="shapes do not fit"):
        retrieval_recall(torch.eye(3), torch.eye(4), torch.arange(3))
    with pytest.raises(ValueError, match="NaN"):
        retrieval_recall(torch.eye(3) * torch.nan, torch.eye(3), torch.arange(3))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog's toy, isn't it?", "a dog 's toy is n't it"),
        ("two T-shirts - 3 for $5.", "two t-shirts 3 for 5"),
        ("He can’t", "he ca n't"),
        ("Ein Café\nim Grünen", "ein café im grünen"),
        ("!?", ""),
    ],
)
def test_tokens(text, tokens):
    assert tokenize(text) == tokens


REFERENCES = [
    ["a red cat sits on a blue mat", "the red cat is sitting on the mat"],
    ["two green birds fly over the sea", "a pair of green birds above the water"],
    ["a man rides a brown horse", "a man on a horse in a field"],
]


def test_captions_equal_to_a_reference_score_full_marks(capsys):
    scores = caption_scores([own[0].upper() + "." for own in REFERENCES], REFERENCES)
    assert scores["BLEU-4"] == pytest.approx(100, abs=1e-3) and scores["ROUGE-L"] == pytest.approx(100)
    assert scores["CIDEr"] > 300  # 1000 for a single reference; halved or so by the other one
    assert capsys.readouterr().out == ""


def test_cider_of_the_only_reference_is_ten():
    """CIDEr-D is 10 by definition where the caption is the only reference and no word is in every picture."""
    scores = caption_scores([own[0] for own in REFERENCES], [own[:1] for own in REFERENCES])
    assert scores["CIDEr"] == pytest.approx(1000)


def test_bleu_and_rouge_by_hand():
    """Precisions 5/6, 3/5, 2/4, 1/3, equal lengths; longest common subsequence 5 of 6 on both sides."""
    scores = caption_scores(["a b c d x f"], [["a b c d e f"]])
    assert scores["BLEU-4"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, rel=1e-3)
    assert scores["ROUGE-L"] == pytest.approx(100 * 5 / 6)


def test_worse_captions_score_lower():
    right = caption_scores([own[0] for own in REFERENCES], REFERENCES)
    wrong = caption_scores([REFERENCES[(row + 1) % 3][0] for row in range(3)], REFERENCES)
    empty = caption_scores([""] * 3, REFERENCES)
    for name in right:
        assert right[name] > wrong[name] >= empty[name] >= 0


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="2 captions cannot be scored against references of 1"):
        caption_scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="no captions"):
        caption_scores([], [])
    with pytest.raises(ValueError, match="picture 1 has no reference"):
        caption_scores(["a", "b"], [["a"], []])


def test_the_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[eval\]'"):
        caption_scores(["a"], [["a"]])


def test_roc_auc_is_the_share_of_ordered_pairs():
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
