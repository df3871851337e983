"""Retrieval: finetune the encoder with ITC and ITM (the filter of CapFilt)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blipcore import distributed
from blipcore.data.eval_batches import Pictures
from blipcore.metrics.ranking import retrieval_ranks, retrieval_recall
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.contrastive import ContrastiveConfig, ContrastiveTask
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, with_first


@dataclass
class RetrievalConfig(ContrastiveConfig):
    """ITC + ITM where several captions belong to one image."""

    max_tokens: int = 35
    itc_weight: float = 1.0
    itm_weight: float = 1.0


class RetrievalTask(ContrastiveTask):
    """`loss` = weighted sum of `loss_itc` and `loss_itm`; texts of the same image share the positive mass."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: RetrievalConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = Collate(tokenizer, config.max_tokens)
        self.register_buffer("idx_queue", torch.full((1, config.queue_size), -100))

    def queues(self) -> dict[str, str]:
        return super().queues() | {"image_ids": "idx_queue"}

    def positives(self, batch: Batch) -> Tensor:
        """(B, P+Q): every key of the same image, normalised to sum 1."""
        ids = batch["image_ids"]
        candidates = distributed.gather(ids) if self.config.itc_across_ranks else ids
        same = (ids[:, None] == torch.cat([candidates[None], self.idx_queue], dim=1)).float()
        return same / same.sum(1, keepdim=True)

    def same(self, batch: Batch, pool: Batch) -> Tensor:
        """Texts of the same image."""
        return batch["image_ids"][:, None] == pool["image_ids"][None]

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        model, config, ids = self.model, self.config, batch["input_ids"]
        plain, enc = model.text.look_up(ids, with_first(ids, self.tokenizer.enc))
        image_embeds = model.encode_image(batch["pixels"])
        text_hidden = model.text.encode(plain, batch["attention_mask"])
        image_feat, text_feat = model.image_feat(image_embeds), model.text_feat(text_hidden)
        out = self.contrast(batch, image_feat, text_feat, progress)
        out["image_ids"] = distributed.gather(batch["image_ids"][:, None])

        # Negatives are mined among the model's own features here, not the momentum keys.
        with torch.no_grad(), torch.autocast(image_feat.device.type, enabled=False):
            across = config.itm_across_ranks
            images, texts = (distributed.gather(x) if across else x for x in (image_feat, text_feat))
            out["i2t"], out["t2i"] = image_feat @ texts.T / model.temp, text_feat @ images.T / model.temp
        kv = model.text.image_kv(image_embeds)
        out["loss_itm"] = self.match(batch, enc, image_embeds, kv, out.pop("i2t"), out.pop("t2i"), progress)
        out["loss"] = config.itc_weight * out["loss_itc"] + config.itm_weight * out["loss_itm"]
        return out


@torch.inference_mode()
def evaluate_retrieval(
    model: Blip, tokenizer: Tokenizer, pictures: Pictures, k: int = 128, max_tokens: int = 35, rows: int = 512
) -> dict[str, float]:
    """Recall of texts by image and of images by text: an ITC shortlist of `k`, re-ranked by ITM logit + cosine.

    Adds the recalls of the plain ITC cosine under `itc_…`. What is outside a shortlist is never found. Images are
    encoded twice, a batch at a time, rather than kept: the tokens of 5,000 images at 384 pixels are 8.9 GB. `rows`
    pairs go through the text transformer at a time.
    """
    model.eval()
    device = next(model.parameters()).device
    texts = [clean_caption(text) for record in pictures.records for text in record["texts"]]
    owner = torch.tensor([i for i, record in enumerate(pictures.records) for _ in record["texts"]])
    ids, mask = (x.to(device) for x in tokenizer(texts, max_length=max_tokens))
    text_feat = torch.cat(
        [model.text_feat(model.text.encode(ids[i : i + rows], mask[i : i + rows])) for i in range(0, len(ids), rows)]
    )
    image_feat = torch.cat([model.image_feat(model.encode_image(pixels.to(device))) for _, pixels in pictures])
    T, image = len(text_feat), torch.arange(len(image_feat))

    texts_of, itc_i2t = shortlist(image_feat, text_feat, k, image, owner)  # (I, k) rows of texts
    images_of, itc_t2i = shortlist(text_feat, image_feat, k, owner, image)  # (T, k) rows of images
    wanted_i2t, wanted_t2i = image[:, None] * T + texts_of, images_of * T + torch.arange(T)[:, None]
    pairs = torch.cat([wanted_i2t.flatten(), wanted_t2i.flatten()]).unique()  # image * T + text, in order

    ids = with_first(ids, tokenizer.enc)
    scores, first = [], 0
    for records, pixels in pictures:
        inside = pairs[torch.searchsorted(pairs, first * T) : torch.searchsorted(pairs, (first + len(records)) * T)]
        of, text = inside // T - first, inside % T
        cosine = (image_feat[first + of.to(device)] * text_feat[text.to(device)]).sum(1).cpu()
        scores.append(cosine + match_pairs(model, pixels.to(device), ids, mask, of, text, rows))
        first += len(records)
    score = torch.cat(scores)
    i2t = retrieval_ranks(score[torch.searchsorted(pairs, wanted_i2t)], owner[texts_of] == image[:, None])
    t2i = retrieval_ranks(score[torch.searchsorted(pairs, wanted_t2i)], images_of == owner[:, None])
    itc = {f"itc_{name}": value for name, value in retrieval_recall(itc_i2t, itc_t2i).items()}
    return retrieval_recall(i2t, t2i) | itc


def shortlist(
    queries: Tensor, keys: Tensor, k: int, image_of_query: Tensor, image_of_key: Tensor, rows: int = 256
) -> tuple[Tensor, Tensor]:
    """The `k` keys of highest cosine for each query (Q, k), and the rank of its best right one among all keys (Q,)."""
    best, ranks = [], []
    for some, image in zip(queries.split(rows), image_of_query.split(rows), strict=True):
        with torch.autocast(queries.device.type, enabled=False):
            cosine = some @ keys.T
        best.append(cosine.topk(min(k, len(keys)), dim=1).indices.cpu())
        ranks.append(retrieval_ranks(cosine.cpu(), image[:, None] == image_of_key[None]))
    return torch.cat(best), torch.cat(ranks)


def match_pairs(
    model: Blip, pixels: Tensor, ids: Tensor, mask: Tensor, image: Tensor, text: Tensor, rows: int
) -> Tensor:
    """ITM logits (P,) of pairs of a picture of the batch and a text (rows of `ids`), on the CPU.

    Texts of one picture go through in groups that share its keys and values, and texts of like length together: COCO's
    captions are a third as long as the longest, to which all would be padded.
    """
    kv = model.text.image_kv(model.encode_image(pixels))
    length, text = mask.sum(1).cpu()[text], text.to(ids.device)
    order = (image * (mask.shape[1] + 1) + length).argsort()  # by picture, then by length
    count = image.bincount(minlength=len(pixels))
    size = min(64, max(1, len(text) // (4 * len(pixels))))  # of a group; the last of a picture is filled up: an eighth
    groups = (count + size - 1) // size
    of_group = torch.arange(len(pixels)).repeat_interleave(groups)
    nth = torch.arange(len(of_group)) - (groups.cumsum(0) - groups)[of_group]
    end = count.cumsum(0)[of_group]
    start = end - count[of_group] + nth * size
    members = order[(start[:, None] + torch.arange(size)).minimum(end[:, None] - 1)]  # (G, size) pairs

    logits = torch.empty(len(text), device=ids.device)
    by_length = length[members[:, -1]].argsort()
    for some in by_length.split(max(1, rows // size)):
        longest = int(length[members[some, -1]].max())
        pair, of = members[some].flatten().to(ids.device), of_group[some].to(ids.device)
        row = text[pair]
        fused = model.text.fuse(ids[row, :longest], mask[row, :longest], kv.select(of))
        logits[pair] = model.itm_logits(fused)[:, 1]
    return logits.cpu()
