"""Zero-shot classification: the class with the nearest text features (ITC), or the best answer of a VQA model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blipcore.data.eval_batches import EvalBatches
from blipcore.metrics.ranking import NEVER, retrieval_ranks
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.vqa import WRITE_ANSWERS, evaluate_vqa


@torch.inference_mode()
def class_features(
    model: Blip, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str], max_tokens: int = 35
) -> Tensor:
    """Return a unit vector (C, E) per class: the normalized mean of its name's features over the templates."""
    device, features = next(model.parameters()).device, []
    for name in names:
        texts = [clean_caption(template.replace("{}", name)) for template in templates]
        ids, mask = tokenizer(texts, max_length=max_tokens)
        features.append(model.text_feat(model.text.encode(ids.to(device), mask.to(device))).mean(0))
    return F.normalize(torch.stack(features), dim=-1)


@torch.inference_mode()
def evaluate_classification(
    model: Blip, tokenizer: Tokenizer, pictures: EvalBatches, names: Sequence[str], templates: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Predict the class whose features have the highest cosine.

    Returns the scores of `class_accuracy`, and [{"image", "label", "prediction"}] with class names.
    """
    model.eval()
    device, classes = next(model.parameters()).device, class_features(model, tokenizer, names, templates)
    cosines = []
    for _, pixels in pictures:
        image_feat = model.image_feat(model.encode_image(pixels.to(device)))
        with torch.autocast(device.type, enabled=False):
            cosines.append((image_feat @ classes.T).cpu())
    cosine = torch.cat(cosines)  # (pictures, C)
    labels = torch.tensor([record["label"] for record in pictures.records])
    ranks = retrieval_ranks(cosine, F.one_hot(labels, len(names)).bool())
    predictions = [names[index] for index in cosine.argmax(1).tolist()]
    return class_accuracy(ranks, labels, len(names)), _result_rows(pictures, names, predictions)


@torch.inference_mode()
def evaluate_classification_by_vqa(
    model: Blip, tokenizer: Tokenizer, pictures: EvalBatches, names: Sequence[str], question: str, k: int = 128
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Predict the class name that a VQA model ranks first as the answer to `question`, of a shortlist of `k`.

    Returns the same as `evaluate_classification`, without `accuracy@5`.
    """
    records = [
        {**record, "questions": [{"question": question, "answers": [], "question_id": record["key"]}]}
        for record in pictures.records
    ]
    _, results = evaluate_vqa(model, tokenizer, replace(pictures, records=records), WRITE_ANSWERS, names, k)
    rows = _result_rows(pictures, names, [result["answer"] for result in results])
    ranks = torch.tensor([0 if row["prediction"] == row["label"] else NEVER for row in rows])
    labels = torch.tensor([record["label"] for record in pictures.records])
    return class_accuracy(ranks, labels, classes=1), rows


def _result_rows(pictures: EvalBatches, names: Sequence[str], predictions: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"image": record["key"], "label": names[record["label"]], "prediction": prediction}
        for record, prediction in zip(pictures.records, predictions, strict=True)
    ]


def class_accuracy(ranks: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Return accuracies in percent from the rank of each picture's own class, 0 being the first.

    `accuracy@5` (own class among the first five) needs more than five `classes`; `mean_class_accuracy` weighs classes
    equally.
    """
    correct = (ranks < 1).double()
    accuracy_by_class = torch.stack([correct[labels == label].mean() for label in labels.unique()])
    scores = {"accuracy": 100.0 * float(correct.mean())}
    if classes > 5:
        scores["accuracy@5"] = 100.0 * float((ranks < 5).double().mean())
    return scores | {"mean_class_accuracy": 100.0 * float(accuracy_by_class.mean())}
