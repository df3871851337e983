"""Retrieval: finetune the encoder with ITC and ITM (the filter of CapFilt)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.momentum import ContrastiveConfig, ContrastiveTask
from blipcore.tasks.task import Batch, Collate, Outputs, Progress


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
