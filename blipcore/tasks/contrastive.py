"""Momentum encoders and feature queues: the part that pre-training and retrieval finetuning share.

A slow copy of the unimodal encoders gives the keys of the contrastive loss, a queue keeps the keys of past batches as
further negatives, and the copy's similarities soften the targets (paper section 3.2, from ALBEF and MoCo).

Over W processes the queues take the keys of all of them. Candidates of the batch at hand come from a process's own B
samples, or from all W*B: then P, the candidates, counts W*B and the losses are those of one process with the whole
batch. B is always a process's own.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore import distributed
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.losses import Negatives, clamp_temperature, itc_loss, itm_loss, sample_negatives, soft_targets
from blipcore.tasks.task import Batch, Outputs, Progress, Task, with_first

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
    # Of several processes: is the batch that ITC contrasts, or that ITM takes its negatives from, the whole one? The
    # official code does the second when finetuning on COCO, the first never.
    itc_across_ranks: bool = False
    itm_across_ranks: bool = False

    def __post_init__(self) -> None:
        for name in ("queue_size", "alpha_ramp_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("momentum", "alpha", "random_negatives", "itm_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1, not {getattr(self, name)}")


def momentum_copy(model: Blip) -> Blip:
    """A frozen copy of the unimodal half of `model` (image encoder, text encoder, both projections)."""
    copy = model.only("encode", "itc").requires_grad_(False)
    copy.temp = None
    return copy


class ContrastiveTask(Task):
    """ITC against a queue of momentum features, and ITM with negatives mined from the batch."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: ContrastiveConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.momentum = momentum_copy(model)
        width, size = model.config.embed_dim, config.queue_size
        self.register_buffer("image_queue", nn.functional.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("text_queue", nn.functional.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def take_up(self, left: Mapping[str, Tensor]) -> None:
        """Go on with the momentum encoders and queued features that a checkpoint was left with, as the official code.

        `left` has our names (see `convert.read_official`). Queues of another length stay noise. Whose images the
        features are of is not taken over: those are numbers of other annotations, equal by chance to some of these.
        """
        own = self.state_dict()
        taken = [name for name in left if name.startswith("momentum.") or name in ("image_queue", "text_queue")]
        fitting = {name: left[name] for name in taken if name in own and own[name].shape == left[name].shape}
        self.load_state_dict(fitting, strict=False)

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
        """Hard ITC targets (B, P+Q), rows summing to 1: the sample's own key."""
        B = len(batch["pixels"])
        before, candidates = self._place(B, self.config.itc_across_ranks)
        own = torch.eye(B, device=batch["pixels"].device)
        return F.pad(own, (before, candidates - before - B + self.config.queue_size))

    @abstractmethod
    def same(self, batch: Batch, pool: Batch) -> Tensor:
        """(B, P) True where a text of `pool` is no negative for an image of `batch`."""

    def _place(self, B: int, across: bool) -> tuple[int, int]:
        """How many of the batch's candidates stand before this process's own, and how many there are."""
        return (distributed.rank() * B, distributed.world_size() * B) if across else (0, B)

    def alpha(self, progress: Progress) -> float:
        ramp = self.config.alpha_ramp_steps
        return self.config.alpha * (min(1.0, progress.step / ramp) if ramp else 1.0)

    def contrast(self, batch: Batch, image_feat: Tensor, text_feat: Tensor, progress: Progress) -> Outputs:
        """`loss_itc`, the keys of all processes (W*B, E) for the queues, and what `match` needs to mine negatives.

        That is `i2t` and `t2i` (B, P): similarity logits to the candidates of ITM.
        """
        temp, slow, config = self.model.temp, self.momentum, self.config
        with torch.no_grad():
            image_key = slow.image_feat(slow.encode_image(batch["pixels"]))
            text_key = slow.text_feat(slow.text.encode(batch["input_ids"], batch["attention_mask"]))
            own, every = (image_key, text_key), (distributed.gather(image_key), distributed.gather(text_key))
        # Cosines over a temperature of 0.07 need more digits than bfloat16 has.
        with torch.autocast(image_feat.device.type, enabled=False), torch.no_grad():
            images, texts = every if config.itc_across_ranks else own
            image_keys = torch.cat([images.T, self.image_queue], dim=1)
            text_keys = torch.cat([texts.T, self.text_queue], dim=1)
            alpha, hard = self.alpha(progress), self.positives(batch)
            targets_i2t = soft_targets(image_key @ text_keys / temp, hard, alpha)
            targets_t2i = soft_targets(text_key @ image_keys / temp, hard, alpha)
            images, texts = every if config.itm_across_ranks else own
            nearby_i2t, nearby_t2i = image_feat @ texts.T / temp, text_feat @ images.T / temp
        with torch.autocast(image_feat.device.type, enabled=False):
            i2t, t2i = image_feat @ text_keys / temp, text_feat @ image_keys / temp
        return {
            "loss_itc": itc_loss(i2t, t2i, targets_i2t, targets_t2i),
            "image_key": every[0],
            "text_key": every[1],
            "i2t": nearby_i2t,
            "t2i": nearby_t2i,
        }

    def negatives(
        self, i2t: Tensor, t2i: Tensor, forbidden: Tensor, progress: Progress, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """For each text an image (B), for each image a text (B) of the candidates, no pair among them: hard ones.

        Sample 0's own place among the candidates is `first`.
        """
        easy = progress.fraction < self.config.random_negatives
        weights = [torch.ones_like(i2t)] * 2 if easy else [t2i.softmax(1) + FLOOR, i2t.softmax(1) + FLOOR]
        return tuple(sample_negatives(weight, forbidden, self.config.negatives, first) for weight in weights)

    def match(
        self,
        batch: Batch,
        texts: Tensor,
        image_embeds: Tensor,
        kv: ImageKV,
        i2t: Tensor,
        t2i: Tensor,
        progress: Progress,
    ) -> Tensor:
        """ITM loss over B true pairs, B texts with a negative image and B images with a negative text, in one pass.

        `texts` are the batch's ids with [ENC] first, or their word vectors; `i2t`, `t2i` are similarity logits (B, P)
        that say how hard a negative is.
        """
        B, ranks = round(len(i2t) * self.config.itm_share), i2t.shape[1] // len(i2t)
        if B < 2:
            raise ValueError("ITM takes its negatives from the batch: batch_size x itm_share must be at least 2")
        i2t, t2i = (logits.unflatten(1, (ranks, -1))[:B, :, :B].flatten(1) for logits in (i2t, t2i))
        batch = {name: batch[name][:B] for name in ("input_ids", "attention_mask", "image_ids")}
        pool = self._pool(batch)
        first, _ = self._place(B, self.config.itm_across_ranks)
        image_for_text, text_for_image = self.negatives(i2t, t2i, self.same(batch, pool), progress, first)
        # An image meets its own text and the negative one in neighbouring rows and lends both its keys and values; only
        # the negative images, in no order, have to be copied. All go through in one batch.
        own = first + torch.arange(B, device=i2t.device)
        rows = torch.cat([torch.stack([own, text_for_image], dim=1).flatten(), own])
        matched = torch.zeros_like(rows)
        matched[: 2 * B : 2] = 1
        across = self.config.itm_across_ranks
        texts = with_first(pool["input_ids"], self.tokenizer.enc) if across else texts
        ids, mask = texts[rows], pool["attention_mask"][rows]
        if across:
            # Images of other processes come as tokens, and only the drawn ones become keys and values.
            drawn = self.model.text.image_kv(distributed.gather_with_gradient(image_embeds[:B])[image_for_text])
            parts = ((slice(2 * B), kv.first(B)), (slice(2 * B, None), drawn))
            fused = torch.cat([self.model.text.fuse(ids[some], mask[some], part) for some, part in parts])
        else:
            fused = self.model.text.fuse(ids, mask, kv.first(B), others=image_for_text)
        return itm_loss(self.model.itm_logits(fused), matched)

    def _pool(self, batch: Batch) -> Batch:
        """The samples that ITM takes its negatives from: the batch, or those of all processes, padded to one length."""
        if not self.config.itm_across_ranks:
            return batch
        padding = (0, self.collate.max_tokens - batch["input_ids"].shape[1])
        texts = {name: F.pad(batch[name], padding) for name in ("input_ids", "attention_mask")}
        return {name: distributed.gather(tensor) for name, tensor in (batch | texts).items()}
