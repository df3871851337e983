"""Retrieval: finetune the encoder with ITC and ITM (the filter of CapFilt)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blipcore.data.pictures import Pictures
from blipcore.metrics import retrieval_recall
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.momentum import ContrastiveConfig, ContrastiveTask
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
        """(B, B+Q): every key of the same image, normalised to sum 1."""
        ids = batch["image_ids"][:, None]
        same = (ids == torch.cat([ids.T, self.idx_queue], dim=1)).float()
        return same / same.sum(1, keepdim=True)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        model, config = self.model, self.config
        image_embeds = model.encode_image(batch["pixels"])
        text_hidden = model.text.encode(batch["input_ids"], batch["attention_mask"])
        image_feat, text_feat = model.image_feat(image_embeds), model.text_feat(text_hidden)
        out = self.contrast(batch, image_feat, text_feat, progress)
        out["image_ids"] = batch["image_ids"][:, None]

        # Negatives are mined among the model's own features here, not the momentum keys.
        with torch.no_grad(), torch.autocast(image_feat.device.type, enabled=False):
            logits = image_feat @ text_feat.T / model.temp
        same = batch["image_ids"][:, None] == batch["image_ids"][None]
        kv = model.text.image_kv(image_embeds)
        out["loss_itm"] = self.match(batch, kv, logits, logits.T, same, progress)
        out["loss"] = config.itc_weight * out["loss_itc"] + config.itm_weight * out["loss_itm"]
        return out


UNRANKED = -100.0  # score of a pair outside the ITC shortlist, below any ITM logit (official value)


@torch.inference_mode()
def evaluate_retrieval(
    model: Blip, tokenizer: Tokenizer, pictures: Pictures, k: int = 128, max_tokens: int = 35, rows: int = 256
) -> dict[str, float]:
    """Recall of texts by image and of images by text: an ITC shortlist of `k`, re-ranked by ITM logit + cosine.

    Adds the recalls of the plain ITC cosine under `itc_…`. Images are encoded twice rather than kept: the tokens of
    5,000 images at 384 pixels are 8.9 GB. `rows` pairs go through the text transformer at a time.
    """
    model.eval()
    device = next(model.parameters()).device
    texts = [clean_caption(text) for record in pictures.records for text in record["texts"]]
    image_of_text = torch.tensor([i for i, record in enumerate(pictures.records) for _ in record["texts"]])
    ids, mask = (x.to(device) for x in tokenizer(texts, max_length=max_tokens))

    text_feat = torch.cat(
        [model.text_feat(model.text.encode(ids[i : i + rows], mask[i : i + rows])) for i in range(0, len(ids), rows)]
    )
    image_feat = torch.cat([model.image_feat(model.encode_image(pixels.to(device))) for _, pixels in pictures])
    with torch.autocast(device.type, enabled=False):
        cosine = (image_feat @ text_feat.T).cpu()  # (images, texts)

    by_image = torch.zeros_like(cosine, dtype=torch.bool)
    by_image.scatter_(1, cosine.topk(min(k, cosine.shape[1]), dim=1).indices, True)
    by_text = torch.zeros_like(by_image)
    by_text.scatter_(0, cosine.topk(min(k, cosine.shape[0]), dim=0).indices, True)

    scores = torch.full_like(cosine, UNRANKED)
    ids = with_first(ids, tokenizer.enc)
    first = 0
    for records, pixels in pictures:
        kv = model.text.image_kv(model.encode_image(pixels.to(device)))
        pairs = (by_image | by_text)[first : first + len(records)].nonzero()
        for image, text in (chunk.unbind(1) for chunk in pairs.split(rows)):
            on_device = text.to(device)
            fused = model.text.fuse(ids[on_device], mask[on_device], kv.select(image.to(device)))
            scores[image + first, text] = model.itm_logits(fused)[:, 1].cpu() + cosine[image + first, text]
        first += len(records)

    i2t = scores.where(by_image, torch.tensor(UNRANKED))
    t2i = scores.where(by_text, torch.tensor(UNRANKED)).T
    itc = retrieval_recall(cosine, cosine.T, image_of_text)
    return retrieval_recall(i2t, t2i, image_of_text) | {f"itc_{name}": value for name, value in itc.items()}
