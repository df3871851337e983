"""Zero-shot classification against its definition, on a tiny random model."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.transforms import EvalTransform
from blipcore.tasks.classification import class_accuracy, class_features, evaluate_classification

NAMES = ["dog", "cat", "green dog", "red", "blue", "mat", "and"]
TEMPLATES = ["a {}", "the {} on a mat.", "{}"]


def test_a_class_is_the_mean_of_its_templates(filter_model, tokenizer) -> None:
    features = class_features(filter_model, tokenizer, NAMES, TEMPLATES)
    texts = ["a green dog", "the green dog on a mat", "green dog"]
    alone = [filter_model.text_feat(filter_model.text.encode(*tokenizer([text], max_length=35)))[0] for text in texts]
    torch.testing.assert_close(features[2], F.normalize(torch.stack(alone).mean(0), dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(NAMES)))


def test_the_nearest_class_is_predicted(filter_model, tokenizer, tmp_path) -> None:
    records = []
    for n, colour in enumerate(("red", "green", "blue", "white", "black")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}.png")
        records.append({"key": f"{colour}.png", "image": tmp_path / f"{colour}.png", "label": n % 2})
    pictures = EvalBatches(records, EvalTransform(16), batch_size=2)
    scores, predictions = evaluate_classification(filter_model, tokenizer, pictures, NAMES, TEMPLATES)
    with torch.no_grad():
        image_feat = filter_model.image_feat(filter_model.encode_image(torch.cat([pixels for _, pixels in pictures])))
        similar = image_feat @ class_features(filter_model, tokenizer, NAMES, TEMPLATES).T
    assert [row["prediction"] for row in predictions] == [NAMES[best] for best in similar.argmax(1)]
    assert predictions[1]["image"] == "green.png" and predictions[1]["label"] == "cat"
    five = similar.topk(5).indices
    assert scores["accuracy@5"] == pytest.approx(
        20 * sum(record["label"] in best for record, best in zip(records, five, strict=True))
    )
    hits = sum(row["prediction"] == row["label"] for row in predictions)
    assert scores["accuracy"] == pytest.approx(20 * hits)


def test_accuracies_by_hand() -> None:
    """Two of three pictures of class 0 right, the one of class 2 fourth: 50 overall, the mean of 67 and 0 by class."""
    ranks, label = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 0, 0, 2])
    assert class_accuracy(ranks, label, 6) == {
        "accuracy": 50.0,
        "accuracy@5": 100.0,
        "mean_class_accuracy": pytest.approx(100 / 3),
    }
    assert "accuracy@5" not in class_accuracy(ranks, label, 5)
