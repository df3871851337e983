"""Zero-shot classification by ITC: a picture belongs to the class whose texts its features are nearest to."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blipcore.data.pictures import Pictures
from blipcore.metrics import retrieval_ranks
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption


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
    predictions = [
        {"image": record["key"], "label": names[record["label"]], "prediction": names[best]}
        for record, best in zip(pictures.records, similar.argmax(1).tolist(), strict=True)
    ]
    ranks = retrieval_ranks(similar, F.one_hot(label, len(names)).bool())
    return class_accuracy(ranks, label, len(names)), predictions


def class_accuracy(ranks: Tensor, label: Tensor, classes: int) -> dict[str, float]:
    """Accuracies in percent from the rank that each picture's own class has (0 is the first)."""
    hit = (ranks < 1).double()
    by_class = torch.stack([hit[label == one].mean() for one in label.unique()])
    scores = {"accuracy": 100.0 * float(hit.mean())}
    if classes > 5:
        scores["accuracy@5"] = 100.0 * float((ranks < 5).double().mean())
    return scores | {"mean_class_accuracy": 100.0 * float(by_class.mean())}
