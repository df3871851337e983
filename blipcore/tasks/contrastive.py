"""ITC and ITM with momentum encoders and feature queues, shared by pre-training and retrieval finetuning.

A momentum copy of the unimodal encoders computes the keys of ITC, queues keep the keys of past batches as further
negatives, and the copy's similarities soften the targets (paper section 3.2, from ALBEF and MoCo).

Shapes: B samples of this process, W processes, P candidates, Q keys in a queue, E features. The candidates are this
process's B samples, or with `itc_across_ranks` and `itm_across_ranks` the W*B samples of all processes; losses then
equal those of one process with the whole batch. The queues always hold the keys of all processes.
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
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, Task, replace_first

# Added to the sampling weights of negatives, as in the official pre-training. The official retrieval adds nothing and
# fails when all weights underflow; 1e-4 does not visibly change the distribution.
MIN_NEGATIVE_WEIGHT = 1e-4


@dataclass
class ContrastiveConfig:
    """Settings of ITC and ITM; the defaults are the official ones."""

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4  # weight of the momentum encoders in the ITC targets, reached after alpha_ramp_steps
    alpha_ramp_steps: int = 0
    negatives: Negatives = "multinomial"
    # Share of the run in which ITM negatives are drawn evenly, afterwards by similarity. Hard negatives from the first
    # step keep ITM at chance in small models and short runs.
    random_negatives: float = 0.0
    # Share of the batch used for ITM, the most expensive loss: three passes of the text transformer per sample.
    itm_share: float = 1.0
    # Candidates from all processes instead of one. The official code does this for ITM in finetuning on COCO only.
    itc_across_ranks: bool = False
    itm_across_ranks: bool = False

    def __post_init__(self) -> None:
        for name in ("queue_size", "alpha_ramp_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}.")
        for name in ("momentum", "alpha", "random_negatives", "itm_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")


def momentum_copy(model: Blip) -> Blip:
    """Return a frozen copy of the unimodal half of `model`: image encoder, text encoder and both projections."""
    copy = model.select_parts("encode", "itc").requires_grad_(False)
    copy.temp = None
    return copy


class ContrastiveTask(Task):
    """ITC against a queue of momentum features, and ITM with negatives mined from the batch."""

    collate: Collate
    image_queue: Tensor  # (E, Q)
    text_queue: Tensor  # (E, Q)
    queue_ptr: Tensor  # (1,): the oldest column of the queues

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: ContrastiveConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.momentum = momentum_copy(model)
        shape = (model.config.embed_dim, config.queue_size)
        self.register_buffer("image_queue", F.normalize(torch.randn(shape), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(shape), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @property
    def temperature(self) -> nn.Parameter:
        assert self.model.temp is not None, "the model was built without the ITC head"
        return self.model.temp

    def load_extra(self, tensors: Mapping[str, Tensor]) -> None:
        """Load momentum encoders and queues from the checkpoint, as the official code does.

        `tensors` have this project's names. Skips queues of another length, and the queue of image ids, which belong to
        the annotations of another run.
        """
        state = self.state_dict()
        extra = {
            name: tensor
            for name, tensor in tensors.items()
            if name.startswith("momentum.") or name in ("image_queue", "text_queue")
        }
        matching = {name: x for name, x in extra.items() if name in state and state[name].shape == x.shape}
        self.load_state_dict(matching, strict=False)

    def before_step(self, progress: Progress) -> None:
        """Clamp the temperature and move the momentum encoders toward the model."""
        clamp_temperature(self.temperature)
        parameters = dict(self.model.named_parameters())
        momentum = dict(self.momentum.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(
                list(momentum.values()), [parameters[name] for name in momentum], 1 - self.config.momentum
            )

    def queues(self) -> dict[str, str]:
        """Return output of `forward` -> queue that stores it."""
        return {"image_key": "image_queue", "text_key": "text_queue"}

    @torch.no_grad()
    def after_step(self, outputs: list[Outputs]) -> None:
        """Write the keys of the step over the oldest columns of the queues, wrapping around."""
        size = self.config.queue_size
        if not size:
            return
        for output, name in self.queues().items():
            keys = torch.cat([micro_batch[output] for micro_batch in outputs])[-size:]
            columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % size
            queue = self.get_buffer(name)
            queue[:, columns] = keys.T.to(queue.dtype)
        self.queue_ptr[0] = (self.queue_ptr[0] + len(keys)) % size

    def hard_targets(self, batch: Batch) -> Tensor:
        """Return ITC targets (B, P+Q) with rows summing to 1: all mass on the sample's own key."""
        B = len(batch["pixels"])
        first, candidates = self._candidates(B, self.config.itc_across_ranks)
        targets = torch.eye(B, device=batch["pixels"].device)
        return F.pad(targets, (first, candidates - first - B + self.config.queue_size))

    @abstractmethod
    def excluded_negatives(self, batch: Batch, pool: Batch) -> Tensor:
        """Return (B, P) True where a text of `pool` must not be a negative for an image of `batch`."""

    def _candidates(self, B: int, across_ranks: bool) -> tuple[int, int]:
        """Return the index of this process's first sample among the candidates, and their number."""
        return (distributed.rank() * B, distributed.world_size() * B) if across_ranks else (0, B)

    def alpha(self, progress: Progress) -> float:
        """Return the weight of the momentum encoders in ITC targets."""
        ramp = self.config.alpha_ramp_steps
        return self.config.alpha * (min(1.0, progress.step / ramp) if ramp else 1.0)

    def compute_itc(self, batch: Batch, image_feat: Tensor, text_feat: Tensor, progress: Progress) -> Outputs:
        """Return `loss_itc` of features (B, E), the keys for the queues and the similarities for ITM.

        `image_key` and `text_key` are (W*B, E), of all processes. `i2t` and `t2i` are similarity logits (B, P) to the
        ITM candidates.
        """
        temp, momentum, config = self.temperature, self.momentum, self.config
        with torch.no_grad():
            image_key = momentum.image_feat(momentum.encode_image(batch["pixels"]))
            text_key = momentum.text_feat(momentum.text.encode(batch["input_ids"], batch["attention_mask"]))
            image_keys, text_keys = distributed.gather(image_key), distributed.gather(text_key)
        # bfloat16 has too few digits for cosines divided by a temperature of 0.07.
        with torch.autocast(image_feat.device.type, enabled=False), torch.no_grad():
            images, texts = (image_keys, text_keys) if config.itc_across_ranks else (image_key, text_key)
            image_candidates = torch.cat([images.T, self.image_queue], dim=1)
            text_candidates = torch.cat([texts.T, self.text_queue], dim=1)
            alpha, hard = self.alpha(progress), self.hard_targets(batch)
            targets_i2t = soft_targets(image_key @ text_candidates / temp, hard, alpha)
            targets_t2i = soft_targets(text_key @ image_candidates / temp, hard, alpha)
            images, texts = (image_keys, text_keys) if config.itm_across_ranks else (image_key, text_key)
            itm_i2t, itm_t2i = image_feat @ texts.T / temp, text_feat @ images.T / temp
        with torch.autocast(image_feat.device.type, enabled=False):
            i2t, t2i = image_feat @ text_candidates / temp, text_feat @ image_candidates / temp
        return {
            "loss_itc": itc_loss(i2t, t2i, targets_i2t, targets_t2i),
            "image_key": image_keys,
            "text_key": text_keys,
            "i2t": itm_i2t,
            "t2i": itm_t2i,
        }

    def draw_negatives(
        self, i2t: Tensor, t2i: Tensor, forbidden: Tensor, progress: Progress, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draw a negative image for each text (B,) and a negative text for each image (B,) among the candidates.

        `i2t` and `t2i` are similarity logits (B, P), `forbidden` marks excluded pairs (B, P), and `first` is the index
        of sample 0 among the candidates.
        """
        if progress.fraction < self.config.random_negatives:
            image_weights = text_weights = torch.ones_like(i2t)
        else:
            image_weights, text_weights = t2i.softmax(1) + MIN_NEGATIVE_WEIGHT, i2t.softmax(1) + MIN_NEGATIVE_WEIGHT
        method = self.config.negatives
        image_for_text = sample_negatives(image_weights, forbidden, method, first)
        text_for_image = sample_negatives(text_weights, forbidden, method, first)
        return image_for_text, text_for_image

    def compute_itm(
        self,
        batch: Batch,
        words: Tensor,
        image_embeds: Tensor,
        kv: ImageKV,
        i2t: Tensor,
        t2i: Tensor,
        progress: Progress,
    ) -> Tensor:
        """Return the ITM loss over B true pairs, B texts with a negative image and B images with a negative text.

        `words` (B, L, D) are word vectors of the batch's texts with [ENC] first, and `kv` the keys and values of
        `image_embeds` (B, N, W). `i2t` and `t2i` are similarity logits (B, P): similar pairs are hard negatives.
        """
        B, ranks = round(len(i2t) * self.config.itm_share), i2t.shape[1] // len(i2t)
        if B < 2:
            raise ValueError("ITM takes its negatives from the batch: batch_size x itm_share must be at least 2.")
        i2t, t2i = (logits.unflatten(1, (ranks, -1))[:B, :, :B].flatten(1) for logits in (i2t, t2i))
        batch = {name: batch[name][:B] for name in ("input_ids", "attention_mask", "image_ids")}
        pool = self._pool(batch)
        first, _ = self._candidates(B, self.config.itm_across_ranks)
        forbidden = self.excluded_negatives(batch, pool)
        image_for_text, text_for_image = self.draw_negatives(i2t, t2i, forbidden, progress, first)
        # The true text and the negative text of an image are neighbouring rows and share its keys and values; only the
        # negative images have to be copied.
        true_text = first + torch.arange(B, device=i2t.device)
        rows = torch.cat([torch.stack([true_text, text_for_image], dim=1).flatten(), true_text])
        matched = torch.zeros_like(rows)
        matched[: 2 * B : 2] = 1
        mask = pool["attention_mask"][rows]
        if self.config.itm_across_ranks:
            ids = replace_first(pool["input_ids"], self.tokenizer.enc)[rows]
            # Image tokens are gathered instead of keys and values, which are computed for the drawn images alone.
            negative_embeds = distributed.gather_with_gradient(image_embeds[:B])[image_for_text]
            negative_kv = self.model.text.image_kv(negative_embeds)
            fused = torch.cat(
                [
                    self.model.text.fuse(ids[: 2 * B], mask[: 2 * B], kv.first(B)),
                    self.model.text.fuse(ids[2 * B :], mask[2 * B :], negative_kv),
                ]
            )
        else:
            fused = self.model.text.fuse_words(words[rows], mask, kv.first(B), others=image_for_text)
        return itm_loss(self.model.itm_logits(fused), matched)

    def _pool(self, batch: Batch) -> Batch:
        """Return the samples to draw ITM negatives from: the batch, or those of all processes at one text length."""
        if not self.config.itm_across_ranks:
            return batch
        padding = (0, self.collate.max_tokens - batch["input_ids"].shape[1])
        texts = {name: F.pad(batch[name], padding) for name in ("input_ids", "attention_mask")}
        return {name: distributed.gather(tensor) for name, tensor in (batch | texts).items()}
