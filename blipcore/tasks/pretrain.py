"""Pre-training with ITC, ITM and LM on pictures with web, human or filtered texts (paper section 3.2)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from blipcore import distributed
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.contrastive import ContrastiveConfig, ContrastiveTask
from blipcore.tasks.losses import IGNORE_INDEX, count_scored, lm_loss
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, replace_first


@dataclass
class PretrainConfig(ContrastiveConfig):
    """Settings of pre-training; the official code weighs the three losses equally."""

    max_tokens: int = 30
    itc_weight: float = 1.0
    itm_weight: float = 1.0
    lm_weight: float = 1.0


def equal_texts(ids: Tensor, pool_ids: Tensor) -> Tensor:
    """Return (B, P) True where padded ids (B, L) equal `pool_ids` (P, L'), with L <= L'."""
    ids = F.pad(ids, (0, pool_ids.shape[1] - ids.shape[1]))
    return (ids[:, None] == pool_ids[None]).all(-1)


class PretrainTask(ContrastiveTask):
    """`loss` is the weighted sum of `loss_itc`, `loss_itm` and `loss_lm`."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: PretrainConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = Collate(tokenizer, config.max_tokens)

    def excluded_negatives(self, batch: Batch, pool: Batch) -> Tensor:
        """Exclude equal texts. The official pre-training excludes only the sample's own text."""
        return equal_texts(batch["input_ids"], pool["input_ids"])

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        model, config, tokenizer = self.model, self.config, self.tokenizer
        ids, mask = batch["input_ids"], batch["attention_mask"]
        enc_ids, dec_ids = replace_first(ids, tokenizer.enc), replace_first(ids, tokenizer.bos)
        cls_words, enc_words, dec_words = model.text.look_up([ids, enc_ids], [dec_ids])
        image_embeds = model.encode_image(batch["pixels"])
        text_hidden = model.text.encode_words(cls_words, mask)
        image_feat, text_feat = model.image_feat(image_embeds), model.text_feat(text_hidden)
        out = self.compute_itc(batch, image_feat, text_feat, progress)

        kv = model.text.image_kv(image_embeds)
        out["loss_itm"] = self.compute_itm(batch, enc_words, image_embeds, kv, out.pop("i2t"), out.pop("t2i"), progress)

        decoded = model.text.decode_words(dec_words, mask, kv)
        labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
        # The weight makes this the mean over the tokens of all processes.
        out["loss_lm"] = lm_loss(model.text.logits(decoded), labels) * distributed.mean_weight(count_scored(labels))

        out["loss"] = (
            config.itc_weight * out["loss_itc"]
            + config.itm_weight * out["loss_itm"]
            + config.lm_weight * out["loss_lm"]
        )
        return out
