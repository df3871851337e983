"""Retrieval: finetunes the encoder with ITC and ITM (CapFilt's filter), and its evaluation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from blipcore import distributed
from blipcore.data.eval_batches import EvalBatches
from blipcore.metrics.ranking import NEVER, retrieval_ranks, retrieval_recall
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.contrastive import ContrastiveConfig, ContrastiveTask
from blipcore.tasks.losses import itm_loss
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, replace_first

SAME_TEXT = "same_text_"  # begins the names of recalls in which equal texts match
# Settings that have no effect without judged texts.
JUDGED_SETTINGS = ("judged_texts", "judged_share", "texts_per_picture", "judged_weight")
NEAR_MISS_SETTINGS = ("near_misses", "near_miss_pictures", "near_miss_samples")


@dataclass
class RetrievalConfig(ContrastiveConfig):
    """Settings of ITC and ITM on images with several captions."""

    max_tokens: int = 35
    itc_weight: float = 1.0
    itm_weight: float = 1.0
    # Wrong texts per picture to make (see `blipcore.tasks.near_misses`) and train as judged texts; 0: none.
    near_misses: int = 0
    near_miss_pictures: int = 5000  # pictures with near misses, drawn from the annotations
    near_miss_samples: int = 16  # texts that the decoder samples per picture; the others are edited references
    # Tables of texts that are right or wrong of a picture, for a further ITM loss (see `blipcore.data.judged_texts`).
    judged_texts: list[str] = field(default_factory=list)
    judged_share: float = 0.25  # judged pictures per human pair of a batch
    texts_per_picture: int = 8  # judged texts drawn of a picture, half of them right and half wrong
    judged_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near_misses < 0:
            raise ValueError(f"near_misses must be at least 0, not {self.near_misses}.")
        for name in ("near_miss_pictures", "near_miss_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.judged_share <= 1:
            raise ValueError(f"judged_share must be above 0 and at most 1, not {self.judged_share}.")
        if self.texts_per_picture < 2:
            raise ValueError(f"texts_per_picture must be at least 2, not {self.texts_per_picture}.")

    @property
    def uses_judged_texts(self) -> bool:
        return bool(self.near_misses or self.judged_texts)

    def recorded(self) -> dict[str, Any]:
        """Return the settings to record, without those that have no effect, which earlier runs do not have."""
        unused: set[str] = set() if self.near_misses else set(NEAR_MISS_SETTINGS)
        if not self.uses_judged_texts:
            unused.update(JUDGED_SETTINGS)
        return {name: value for name, value in asdict(self).items() if name not in unused}


@dataclass
class RetrievalCollate(Collate):
    """Adds the judged pictures of a batch and their texts.

    `judged_pixels` (J, 3, S, S); `judged_ids` and `judged_mask` (R, L), `judged_match` (R,), 1 or 0, and the picture of
    each text, `judged_picture` (R,).
    """

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        batch = super().__call__(samples)
        pictures = [sample["judged"] for sample in samples if "judged" in sample]
        if pictures:
            texts = [clean_caption(text, self.max_words) for sample in pictures for text in sample["texts"]]
            ids, mask = self.tokenizer(texts, max_length=self.max_tokens)
            batch |= {
                "judged_pixels": torch.stack([sample["image"] for sample in pictures]),
                "judged_ids": replace_first(ids, self.tokenizer.enc),
                "judged_mask": mask,
                "judged_match": torch.tensor([match for sample in pictures for match in sample["matches"]]).long(),
                "judged_picture": torch.tensor([row for row, sample in enumerate(pictures) for _ in sample["texts"]]),
            }
        return batch


class RetrievalTask(ContrastiveTask):
    """Finetunes the encoder with ITC, ITM and, in batches with judged texts, their ITM loss.

    `loss` is the weighted sum of `loss_itc`, `loss_itm` and `loss_judged`. Texts of one image share its ITC target.
    """

    idx_queue: Tensor  # (1, Q): image ids of the keys in the queues

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: RetrievalConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = RetrievalCollate(tokenizer, config.max_tokens)
        self.register_buffer("idx_queue", torch.full((1, config.queue_size), -100))

    def queues(self) -> dict[str, str]:
        return super().queues() | {"image_ids": "idx_queue"}

    def hard_targets(self, batch: Batch) -> Tensor:
        """Return ITC targets (B, P+Q) with rows summing to 1: equal mass on every key of the sample's image."""
        ids = batch["image_ids"]
        candidates = distributed.gather(ids) if self.config.itc_across_ranks else ids
        same_image = (ids[:, None] == torch.cat([candidates[None], self.idx_queue], dim=1)).float()
        return same_image / same_image.sum(1, keepdim=True)

    def excluded_negatives(self, batch: Batch, pool: Batch) -> Tensor:
        """Exclude texts of the same image."""
        return batch["image_ids"][:, None] == pool["image_ids"][None]

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        model, config, ids = self.model, self.config, batch["input_ids"]
        cls_words, enc_words = model.text.look_up([ids, replace_first(ids, self.tokenizer.enc)])
        image_embeds = model.encode_image(batch["pixels"])
        text_hidden = model.text.encode_words(cls_words, batch["attention_mask"])
        image_feat, text_feat = model.image_feat(image_embeds), model.text_feat(text_hidden)
        out = self.compute_itc(batch, image_feat, text_feat, progress)
        out["image_ids"] = distributed.gather(batch["image_ids"][:, None])

        # Here negatives are mined with the model's features, not with the momentum keys as in pre-training.
        with torch.no_grad(), torch.autocast(image_feat.device.type, enabled=False):
            images, texts = image_feat, text_feat
            if config.itm_across_ranks:
                images, texts = distributed.gather(image_feat), distributed.gather(text_feat)
            out["i2t"] = image_feat @ texts.T / self.temperature
            out["t2i"] = text_feat @ images.T / self.temperature
        kv = model.text.image_kv(image_embeds)
        out["loss_itm"] = self.compute_itm(batch, enc_words, image_embeds, kv, out.pop("i2t"), out.pop("t2i"), progress)
        out["loss"] = config.itc_weight * out["loss_itc"] + config.itm_weight * out["loss_itm"]
        if "judged_match" in batch:
            out["loss_judged"] = self.compute_judged(batch)
            out["loss"] = out["loss"] + config.judged_weight * out["loss_judged"]
        return out

    def compute_judged(self, batch: Batch) -> Tensor:
        """Return the ITM loss of the judged texts, whose targets are given."""
        kv = self.model.text.image_kv(self.model.encode_image(batch["judged_pixels"])).select(batch["judged_picture"])
        fused = self.model.text.fuse(batch["judged_ids"], batch["judged_mask"], kv)
        loss = itm_loss(self.model.itm_logits(fused), batch["judged_match"])
        # The weight makes this the mean over the texts of all processes.
        return loss * distributed.mean_weight(torch.tensor(float(len(batch["judged_match"])), device=loss.device))


@torch.inference_mode()
def evaluate_retrieval(
    model: Blip, tokenizer: Tokenizer, pictures: EvalBatches, k: int = 128, max_tokens: int = 35, rows: int = 512
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the recall in percent of texts by image and of images by text, as published numbers are, and the ranks.

    There a text matches its own image alone. If images share texts, no model can rank them so: "shared_texts" is the
    number of such texts, and the recalls in which an equal text is a match too are added as `same_text_...`.
    The `k` candidates of highest ITC cosine are re-ranked by ITM logit + cosine; others are never found. The recalls of
    the cosine alone are added as `itc_...`, those of ITM log-odds + cosine / temperature as `sum_...`. `rows` pairs are
    fused at a time. Images are encoded twice, since the tokens of 5,000 images at 384 pixels take 8.9 GB.

    The ranks are a row per image, from 0, None for not found: "text_rank" of its best text, "image_ranks" of the image
    for each of its texts. An equal text of another image counts as right there.
    """
    model.eval()
    device = next(model.parameters()).device
    texts = [clean_caption(text) for record in pictures.records for text in record["texts"]]
    image_of_text = torch.tensor([i for i, record in enumerate(pictures.records) for _ in record["texts"]])
    ids, mask = tokenizer(texts, max_length=max_tokens)
    ids, mask = ids.to(device), mask.to(device)
    text_feat = torch.cat(
        [model.text_feat(model.text.encode(ids[i : i + rows], mask[i : i + rows])) for i in range(0, len(ids), rows)]
    )
    image_feat = torch.cat([model.image_feat(model.encode_image(pixels.to(device))) for _, pixels in pictures])
    T, images = len(text_feat), torch.arange(len(image_feat))
    assert model.temp is not None
    temperature = float(model.temp)

    best_texts, itc_i2t = shortlist(image_feat, text_feat, k, images, image_of_text)  # (I, k)
    best_images, itc_t2i = shortlist(text_feat, image_feat, k, image_of_text, images)  # (T, k)
    # A pair has the number image * T + text; those of both shortlists are scored once, in this order.
    pairs_i2t, pairs_t2i = images[:, None] * T + best_texts, best_images * T + torch.arange(T)[:, None]
    pairs = torch.cat([pairs_i2t.flatten(), pairs_t2i.flatten()]).unique()

    ids = replace_first(ids, tokenizer.enc)
    scores, first = [], 0
    for records, pixels in pictures:
        start, end = torch.searchsorted(pairs, torch.tensor([first * T, (first + len(records)) * T]))
        image, text = pairs[start:end] // T - first, pairs[start:end] % T
        cosine = (image_feat[first + image.to(device)] * text_feat[text.to(device)]).sum(1).cpu()
        logits = match_pairs(model, pixels.to(device), ids, mask, image, text, rows)
        # Hard negatives are drawn in proportion to exp(cosine / temperature), so ITM learns the log-odds of a match
        # beyond those of the cosine, and the sum estimates the log-odds of a match.
        scores.append(torch.stack([cosine + logits[:, 1], cosine / temperature + logits[:, 1] - logits[:, 0]]))
        first += len(records)
    score, total = torch.cat(scores, dim=1)

    def rank(score: Tensor) -> tuple[Tensor, Tensor]:
        i2t = retrieval_ranks(score[torch.searchsorted(pairs, pairs_i2t)], image_of_text[best_texts] == images[:, None])
        t2i = retrieval_ranks(score[torch.searchsorted(pairs, pairs_t2i)], best_images == image_of_text[:, None])
        return i2t, t2i

    i2t, t2i = rank(score)
    itc = {f"itc_{name}": value for name, value in retrieval_recall(itc_i2t, itc_t2i).items()}
    sums = {f"sum_{name}": value for name, value in retrieval_recall(*rank(total)).items()}
    recall = retrieval_recall(i2t, t2i) | itc | sums
    shared = SharedTexts(texts, image_of_text.tolist())
    if shared.count:
        i2t_match = [best.apply_(shared.texts_of(i).__contains__) for i, best in enumerate(best_texts.clone())]
        t2i_match = [best.apply_(shared.images_of(t).__contains__) for t, best in enumerate(best_images.clone())]
        i2t = retrieval_ranks(score[torch.searchsorted(pairs, pairs_i2t)], torch.stack(i2t_match).bool())
        t2i = retrieval_ranks(score[torch.searchsorted(pairs, pairs_t2i)], torch.stack(t2i_match).bool())
        recall |= {f"{SAME_TEXT}{name}": value for name, value in retrieval_recall(i2t, t2i).items()}
        recall["shared_texts"] = shared.count
    text_ranks, image_ranks = ([None if rank == NEVER else rank for rank in ranks.tolist()] for ranks in (i2t, t2i))
    remaining = iter(image_ranks)
    ranks = [
        {"image_id": record["image_id"], "text_rank": rank, "image_ranks": [next(remaining) for _ in record["texts"]]}
        for record, rank in zip(pictures.records, text_ranks, strict=True)
    ]
    return recall, ranks


class SharedTexts:
    """Texts that several images have; `count` is their number."""

    def __init__(self, texts: Sequence[str], image_of_text: Sequence[int]) -> None:
        self.texts = texts
        self._texts: dict[str, set[int]] = {}
        self._images: dict[str, set[int]] = {}
        self._texts_of_image: dict[int, set[str]] = {}
        for number, (text, image) in enumerate(zip(texts, image_of_text, strict=True)):
            self._texts.setdefault(text, set()).add(number)
            self._images.setdefault(text, set()).add(image)
            self._texts_of_image.setdefault(image, set()).add(text)
        self.count = sum(len(self._images[text]) > 1 for text in texts)

    def images_of(self, text: int) -> set[int]:
        """Return the images that have a text equal to text number `text`."""
        return self._images[self.texts[text]]

    def texts_of(self, image: int) -> set[int]:
        """Return the numbers of all texts that are equal to a text of an image."""
        return set().union(*(self._texts[text] for text in self._texts_of_image[image]))


def shortlist(
    queries: Tensor, keys: Tensor, k: int, image_of_query: Tensor, image_of_key: Tensor, rows: int = 256
) -> tuple[Tensor, Tensor]:
    """Return the `k` keys of highest cosine per query (Q, k), and the rank (Q,) of its best match among all keys.

    A key matches a query of the same image. `queries` (Q, E) and `keys` (K, E) are unit vectors; `rows` queries are
    compared at a time.
    """
    best, ranks = [], []
    for part, images in zip(queries.split(rows), image_of_query.split(rows), strict=True):
        with torch.autocast(queries.device.type, enabled=False):
            cosine = part @ keys.T
        best.append(cosine.topk(min(k, len(keys)), dim=1).indices.cpu())
        ranks.append(retrieval_ranks(cosine.cpu(), images[:, None] == image_of_key[None]))
    return torch.cat(best), torch.cat(ranks)


def match_pairs(
    model: Blip, pixels: Tensor, ids: Tensor, mask: Tensor, image: Tensor, text: Tensor, rows: int
) -> Tensor:
    """Return the ITM logits (P, 2) of pairs of an image of `pixels` and a text, a row of `ids` (T, L), on the CPU.

    `image` and `text` (P,) are the indices of each pair, on the CPU. Texts of similar length form groups that share
    their image's keys and values. Padding all texts to the longest would triple their usual length on COCO.
    """
    kv = model.text.image_kv(model.encode_image(pixels))
    length, text = mask.sum(1).cpu()[text], text.to(ids.device)
    order = (image * (mask.shape[1] + 1) + length).argsort()  # by image, then by length
    count = image.bincount(minlength=len(pixels))
    # Texts per group. The last group of an image is filled with copies, about an eighth of all rows.
    size = min(64, max(1, len(text) // (4 * len(pixels))))
    groups = (count + size - 1) // size  # per image
    image_of_group = torch.arange(len(pixels)).repeat_interleave(groups)
    index_in_image = torch.arange(len(image_of_group)) - (groups.cumsum(0) - groups)[image_of_group]
    end = count.cumsum(0)[image_of_group]
    start = end - count[image_of_group] + index_in_image * size
    members = order[(start[:, None] + torch.arange(size)).minimum(end[:, None] - 1)]  # (G, size) pairs

    logits = torch.empty(len(text), 2, device=ids.device)
    by_length = length[members[:, -1]].argsort()
    for batch in by_length.split(max(1, rows // size)):
        longest = int(length[members[batch, -1]].max())
        pair = members[batch].flatten().to(ids.device)
        row = text[pair]
        group_kv = kv.select(image_of_group[batch].to(ids.device))
        fused = model.text.fuse(ids[row, :longest], mask[row, :longest], group_kv)
        logits[pair] = model.itm_logits(fused)
    return logits.cpu()
