"""Pre-training: ITC + ITM + LM on image-text pairs, from web, human or bootstrapped data (paper section 3.2)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from blipcore import distributed
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.contrastive import ContrastiveConfig, ContrastiveTask
from blipcore.tasks.losses import IGNORE, lm_loss, scored
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, with_first


@dataclass
class PretrainConfig(ContrastiveConfig):
    """The pre-training objective; the official one weighs its three losses equally."""

    max_tokens: int = 30
    itc_weight: float = 1.0
    itm_weight: float = 1.0
    lm_weight: float = 1.0


def same_text(ids: Tensor, others: Tensor) -> Tensor:
    """(B, P) True where padded ids (B, L) and (P, L') are equal: such a text is no negative for the other's image."""
    ids = F.pad(ids, (0, others.shape[1] - ids.shape[1]))
    return (ids[:, None] == others[None]).all(-1)


class PretrainTask(ContrastiveTask):
    """`loss` = weighted sum of `loss_itc`, `loss_itm`, `loss_lm`."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: PretrainConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = Collate(tokenizer, config.max_tokens)

    def same(self, batch: Batch, pool: Batch) -> Tensor:
        """Equal texts; official pre-training only forbids the own pair and takes such texts for negatives."""
        return same_text(batch["input_ids"], pool["input_ids"])

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        model, config, tokenizer = self.model, self.config, self.tokenizer
        ids, mask = batch["input_ids"], batch["attention_mask"]
        plain, enc, dec = model.text.look_up(ids, with_first(ids, tokenizer.enc), with_first(ids, tokenizer.bos))
        image_embeds = model.encode_image(batch["pixels"])
        text_hidden = model.text.encode(plain, mask)
        out = self.contrast(batch, model.image_feat(image_embeds), model.text_feat(text_hidden), progress)

        kv = model.text.image_kv(image_embeds)
        out["loss_itm"] = self.match(batch, enc, image_embeds, kv, out.pop("i2t"), out.pop("t2i"), progress)

        decoded = model.text.decode(dec, mask, kv)
        labels = ids.masked_fill(mask == 0, IGNORE)
        # A mean over the tokens of all processes: each weighs its own by their number.
        out["loss_lm"] = lm_loss(model.text.logits(decoded), labels) * distributed.share(scored(labels))

        weighted = {"loss_itc": config.itc_weight, "loss_itm": config.itm_weight, "loss_lm": config.lm_weight}
        out["loss"] = sum(weight * out[name] for name, weight in weighted.items())
        return out
