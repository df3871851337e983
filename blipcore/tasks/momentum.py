"""Momentum encoders and feature queues: the part that pre-training and retrieval finetuning share.

A slow copy of the unimodal encoders gives the keys of the contrastive loss, a queue keeps the keys of past batches as
further negatives, and the copy's similarities soften the targets (paper section 3.2, from ALBEF and MoCo).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blipcore.model.blip import Blip
from blipcore.model.med import ImageKV
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.losses import Negatives, clamp_temperature, itc_loss, itm_loss, sample_negatives, soft_targets
from blipcore.tasks.task import Batch, Outputs, Progress, with_first

# Floor under the sampling weights of negatives: the official value of pre-training. Official retrieval has none and
# stops when all weights underflow; at 1e-4 the distribution is the same to the eye.
FLOOR = 1e-4


@dataclass
class ContrastiveConfig:
    """What ITC and ITM need to know; the defaults are the official ones."""

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4  # weight of the momentum model's belief in the ITC targets, reached after alpha_ramp_steps
    alpha_ramp_steps: int = 0
    negatives: Negatives = "multinomial"
    # ITM negatives are drawn evenly for this share of the run, then by similarity. Small models and short runs need
    # it: with hard negatives from the first step their ITM stays at chance.
    random_negatives: float = 0.0
    # Share of the batch that goes through ITM: at three passes of the text transformer a sample the dearest loss.
    itm_share: float = 1.0


def momentum_copy(model: Blip) -> Blip:
    """A frozen copy of the unimodal half of `model` (image encoder, text encoder, both projections)."""
    copy = model.only("encode", "itc").requires_grad_(False)
    copy.temp = None
    return copy


class ContrastiveTask(nn.Module):
    """ITC against a queue of momentum features, and ITM with negatives mined from the batch."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: ContrastiveConfig) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.momentum = momentum_copy(model)
        width, size = model.config.embed_dim, config.queue_size
        self.register_buffer("image_queue", nn.functional.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("text_queue", nn.functional.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def before_step(self, progress: Progress) -> None:
        """Clamp the temperature and move the momentum encoders toward the model."""
        clamp_temperature(self.model.temp)
        own = dict(self.model.named_parameters())
        slow = dict(self.momentum.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(list(slow.values()), [own[name] for name in slow], 1 - self.config.momentum)

    def queues(self) -> dict[str, str]:
        """Which output of `forward` goes into which queue."""
        return {"image_key": "image_queue", "text_key": "text_queue"}

    @torch.no_grad()
    def after_step(self, outputs: list[Outputs]) -> None:
        """Write the momentum features of the step over the oldest columns of the queues, wrapping around."""
        if not self.config.queue_size:
            return
        for output, queue in self.queues().items():
            new = torch.cat([micro[output] for micro in outputs])[-self.config.queue_size :]
            columns = (self.queue_ptr + torch.arange(len(new), device=new.device)) % self.config.queue_size
            buffer = getattr(self, queue)
            buffer[:, columns] = new.T.to(buffer.dtype)
        self.queue_ptr[0] = (self.queue_ptr[0] + len(new)) % self.config.queue_size

    def positives(self, batch: Batch) -> Tensor:
        """Hard ITC targets (B, B+Q), rows summing to 1: the sample's own key."""
        B = len(batch["pixels"])
        return torch.eye(B, B + self.config.queue_size, device=batch["pixels"].device)

    def alpha(self, progress: Progress) -> float:
        ramp = self.config.alpha_ramp_steps
        return self.config.alpha * (min(1.0, progress.step / ramp) if ramp else 1.0)

    def contrast(self, batch: Batch, image_feat: Tensor, text_feat: Tensor, progress: Progress) -> Outputs:
        """`loss_itc`, the keys for the queues and the in-batch similarity logits `i2t`, `t2i` (B, B)."""
        B, temp, slow = len(image_feat), self.model.temp, self.momentum
        with torch.no_grad():
            image_key = slow.image_feat(slow.encode_image(batch["pixels"]))
            text_key = slow.text_feat(slow.text.encode(batch["input_ids"], batch["attention_mask"]))
        # Cosines over a temperature of 0.07 need more digits than bfloat16 has.
        with torch.autocast(image_feat.device.type, enabled=False), torch.no_grad():
            image_keys = torch.cat([image_key.T, self.image_queue], dim=1)
            text_keys = torch.cat([text_key.T, self.text_queue], dim=1)
            alpha, hard = self.alpha(progress), self.positives(batch)
            targets_i2t = soft_targets(image_key @ text_keys / temp, hard, alpha)
            targets_t2i = soft_targets(text_key @ image_keys / temp, hard, alpha)
        with torch.autocast(image_feat.device.type, enabled=False):
            i2t, t2i = image_feat @ text_keys / temp, text_feat @ image_keys / temp
        return {
            "loss_itc": itc_loss(i2t, t2i, targets_i2t, targets_t2i),
            "image_key": image_key,
            "text_key": text_key,
            "i2t": i2t[:, :B].detach(),
            "t2i": t2i[:, :B].detach(),
        }

    def negatives(self, i2t: Tensor, t2i: Tensor, forbidden: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """For each text an image (B), for each image a text (B), that do not belong together: hard ones."""
        easy = progress.fraction < self.config.random_negatives
        weights = [torch.ones_like(i2t)] * 2 if easy else [t2i.softmax(1) + FLOOR, i2t.softmax(1) + FLOOR]
        return tuple(sample_negatives(weight, forbidden, self.config.negatives) for weight in weights)

    def match(
        self, batch: Batch, kv: ImageKV, i2t: Tensor, t2i: Tensor, forbidden: Tensor, progress: Progress
    ) -> Tensor:
        """ITM loss over B true pairs, B texts with a negative image and B images with a negative text, in one pass.

        `i2t`, `t2i` are similarity logits (B, B) that say how hard a negative is; `forbidden` (B, B) marks pairs that
        are no negatives.
        """
        B = round(len(i2t) * self.config.itm_share)
        if B < 2:
            raise ValueError("ITM takes its negatives from the batch: batch_size x itm_share must be at least 2")
        image_for_text, text_for_image = self.negatives(i2t[:B, :B], t2i[:B, :B], forbidden[:B, :B], progress)
        # An image meets its own text and the negative one in neighbouring rows and lends both its keys and values; only
        # the negative images, in no order, have to be copied. All go through in one batch.
        own = torch.arange(B, device=i2t.device)
        texts = torch.cat([torch.stack([own, text_for_image], dim=1).flatten(), own])
        matched = torch.zeros_like(texts)
        matched[: 2 * B : 2] = 1
        ids = with_first(batch["input_ids"], self.tokenizer.enc)[texts]
        fused = self.model.text.fuse(ids, batch["attention_mask"][texts], kv.first(B), others=image_for_text)
        return itm_loss(self.model.itm_logits(fused), matched)
