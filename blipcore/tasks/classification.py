"""Zero-shot classification: a picture belongs to the class whose texts its features are nearest to (ITC).

Or, for a VQA model, to the class whose name is the best answer to a question about it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blipcore.data.eval_batches import Pictures
from blipcore.metrics.ranking import NEVER, retrieval_ranks
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.vqa import WRITE_ANSWERS, evaluate_vqa


@torch.inference_mode()
def class_features(
    model: Blip, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str], max_tokens: int = 35
) -> Tensor:
    """Unit vectors (C, E) of classes: the mean of the features of a name's texts, each a unit vector."""
    device, features = next(model.parameters()).device, []
    for name in names:
        texts = [clean_caption(template.replace("{}", name)) for template in templates]
        ids, mask = (x.to(device) for x in tokenizer(texts, max_length=max_tokens))
        features.append(model.text_feat(model.text.encode(ids, mask)).mean(0))
    return F.normalize(torch.stack(features), dim=-1)


@torch.inference_mode()
def evaluate_classification(
    model: Blip, tokenizer: Tokenizer, pictures: Pictures, names: Sequence[str], templates: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy of the nearest class and, of more than five, of the nearest five, in percent, and the mean over classes.

    Also gives [{"image", "label", "prediction"}], the latter two as names.
    """
    model.eval()
    device, classes = next(model.parameters()).device, class_features(model, tokenizer, names, templates)
    scores = []
    for _, pixels in pictures:
        image_feat = model.image_feat(model.encode_image(pixels.to(device)))
        with torch.autocast(device.type, enabled=False):
            scores.append((image_feat @ classes.T).cpu())
    similar = torch.cat(scores)  # (pictures, C)
    label = torch.tensor([record["label"] for record in pictures.records])
    ranks = retrieval_ranks(similar, F.one_hot(label, len(names)).bool())
    return class_accuracy(ranks, label, len(names)), _rows(pictures, names, [names[n] for n in similar.argmax(1)])


@torch.inference_mode()
def evaluate_classification_by_vqa(
    model: Blip, tokenizer: Tokenizer, pictures: Pictures, names: Sequence[str], question: str, k: int = 128
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy of the class name that a VQA model ranks first as the answer to `question`, of a shortlist of `k`."""
    asked = {"question": question, "answers": []}
    records = [record | {"questions": [asked | {"question_id": record["key"]}]} for record in pictures.records]
    _, results = evaluate_vqa(model, tokenizer, replace(pictures, records=records), WRITE_ANSWERS, names, k)
    rows = _rows(pictures, names, [result["answer"] for result in results])
    ranks = torch.tensor([0 if row["prediction"] == row["label"] else NEVER for row in rows])
    return class_accuracy(ranks, torch.tensor([record["label"] for record in pictures.records]), classes=1), rows


def _rows(pictures: Pictures, names: Sequence[str], predictions: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"image": record["key"], "label": names[record["label"]], "prediction": prediction}
        for record, prediction in zip(pictures.records, predictions, strict=True)
    ]


def class_accuracy(ranks: Tensor, label: Tensor, classes: int) -> dict[str, float]:
    """Accuracies in percent from the rank of each picture's own class, 0 the first; within five of more `classes`."""
    hit = (ranks < 1).double()
    by_class = torch.stack([hit[label == one].mean() for one in label.unique()])
    scores = {"accuracy": 100.0 * float(hit.mean())}
    if classes > 5:
        scores["accuracy@5"] = 100.0 * float((ranks < 5).double().mean())
    return scores | {"mean_class_accuracy": 100.0 * float(by_class.mean())}
