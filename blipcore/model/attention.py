"""Attention of the text and vision transformers, with its caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blipcore.model.config import TextConfig


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of (..., H, Lq, d) queries over (..., H, Lk, d) keys; `mask` is True where allowed.

    On CPU in bfloat16 the products are written out: torch's fused kernel takes 2 to 8 times longer there to train
    (measured with torch 2.13 at 37 to 577 tokens); in float32 and on GPU the fused one is as fast or faster.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return F.dropout(scores.softmax(-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def recomputed(layer: nn.Module, *inputs: object) -> Tensor:
    """`layer(*inputs)`, of which the backward pass keeps the inputs alone and computes the rest again."""
    return checkpoint(layer, *inputs, use_reentrant=False)


def init_std(width: int) -> float:
    """Standard deviation of new weights: the official 0.02 at the official widths, larger in narrower models.

    What a layer passes on grows with sqrt(width) times this. At 128 a plain 0.02 leaves queries and keys so small that
    attention stays flat and a captioner names the second object of a picture only after a thousand steps.
    """
    return 0.02 * max(1.0, 768 / width) ** 0.5


Append = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # see `KVCache.append`


@dataclass
class ImageKV:
    """Cross-attention keys and values of B images in every layer; each item is (2, B, H, N, d).

    Where the roles have cross-attention of their own, the encoder's layers come first, the decoder's last. Image pairs
    have (4, B, H, N, d): those of the first images, then those of the second. `mask` (B, N) tells which tokens may be
    attended to, where that is not all of them. Where they were left out, each item is the image tokens (1, B, N, W).
    """

    layers: list[Tensor]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.layers[0].shape[1]

    def first(self, n: int) -> ImageKV:
        """The first n images, without a copy."""
        if n == len(self):
            return self
        return ImageKV(self.each(lambda kv: kv[:, :n]), self.mask[:n] if self.mask is not None else None)

    def select(self, index: Tensor) -> ImageKV:
        """The rows of `index` (R,), in its order and with repetition."""
        mask = self.mask.index_select(0, index) if self.mask is not None else None
        return ImageKV(self.each(lambda kv: kv.index_select(1, index)), mask)

    def each(self, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What `change` makes of the layers' items; one that several layers share is changed once."""
        changed = {id(kv): change(kv) for kv in {id(kv): kv for kv in self.layers}.values()}
        return [changed[id(kv)] for kv in self.layers]


@dataclass
class KVCache:
    """Preallocated self-attention keys and values of the decoder; `length` tokens are filled in every row.

    Where `at` is given, a one-element tensor, it says in place of `length` where the next token comes, so that the same
    operations do for every step: all of `data` is attended to, behind a mask.
    """

    data: Tensor  # (depth, 2, R, H, room, d)
    length: int = 0
    at: Tensor | None = None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the new tokens (R, H, new, d) and return those of all tokens so far."""
        if self.at is not None:
            self.data[layer].index_copy_(3, self.at, torch.stack([k, v]))
            return self.data[layer, 0], self.data[layer, 1]
        end = self.length + k.shape[2]
        self.data[layer, 0, :, :, self.length : end] = k
        self.data[layer, 1, :, :, self.length : end] = v
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def select(self, index: Tensor) -> None:
        """Keep the rows of `index`, in its order: reorders beams, drops finished rows."""
        self.data = self.data.index_select(2, index)


def split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(R, L, parts*D) -> (parts, R, H, L, d)."""
    R, L, width = x.shape
    return x.view(R, L, parts, heads, width // parts // heads).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """(R, H, L, d) -> (R, L, D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Post-LN self-attention of one role."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads, self.drop = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, append: Append | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        if append is not None:
            k, v = append(k, v)
        context = attend(q, k, v, mask, self.drop if self.training else 0.0)
        return self.norm(x + self.dropout(self.out(merge_heads(context))))


class CrossRead(nn.Module):
    """What text queries read from image tokens; keys and values come ready made from `image_kv`, or not at all.

    Keys and values of an image cost 4NWD operations a layer, and serve all of its texts. A query q meets the key of
    token t as q(Kt) = (qK)t, and the values it reads sum up as sum(p Vt) = V sum(pt): with the queries carried over to
    the image's side (`direct`), a text token costs 4NWH more and the keys and values are never made. That is less work
    for up to D/H text tokens an image: one caption, or the few texts of a web picture.

    x may have k times the rows of kv: rows b*k .. b*k+k-1 then belong to image b. Their queries go through as one long
    sequence, so the image's keys and values are neither repeated nor read k times. Rows that are in no such order come
    last, and `others` names the image of each: only theirs are copied.
    """

    maps: list[Tensor] | None = None  # where `explain.cross_attention_maps` wants to have what was attended to

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads, self.drop = config.heads, config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.encoder_width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def image_kv(self, image_embeds: Tensor) -> Tensor:
        return split_heads(self.kv(image_embeds), 2, self.heads)

    def read(self, x: Tensor, kv: Tensor, mask: Tensor | None, others: Tensor | None) -> Tensor:
        queries = self.query(x)
        if others is None:
            return self.out(self.context(queries, kv, mask))
        in_order, rest = queries.split([len(x) - len(others), len(others)])
        theirs = mask.index_select(0, others) if mask is not None else None
        contexts = [self.context(in_order, kv, mask), self.context(rest, kv.index_select(1, others), theirs)]
        return self.out(torch.cat(contexts))

    def context(self, queries: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        """What (k*B, L, D) queries find in the (2, B, H, N, d) keys and values of B images, k in a row each."""
        if kv.ndim == 4:
            return self.direct(queries, kv[0], mask)
        if self.maps is not None:
            return self.recorded(queries, kv, mask)
        (q,) = split_heads(queries.reshape(kv.shape[1], -1, queries.shape[-1]), 1, self.heads)
        k, v = kv.unbind()  # indexing would fill two tensors of zeros as large as kv in the backward pass
        allowed = mask.bool()[:, None, None, :] if mask is not None else None
        return merge_heads(attend(q, k, v, allowed, self.drop if self.training else 0.0)).view_as(queries)

    def direct(self, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """What (k*B, L, D) queries find in the (B, N, W) tokens of B images, k in a row each, without keys and values.

        The bias of the keys adds the same to all scores of a query, which the softmax takes away again.
        """
        (B, _, W), H, D = tokens.shape, self.heads, queries.shape[-1]
        to_keys, to_values = self.kv.weight.view(2, H, D // H, W).to(queries.dtype)
        tokens = tokens.to(queries.dtype)
        q = queries.reshape(B, -1, H, D // H).permute(2, 0, 1, 3) * (D // H) ** -0.5  # (H, B, L*k, d)
        asked = (q.flatten(1, 2) @ to_keys).view(H, B, -1, W).transpose(0, 1).flatten(1, 2)  # (B, H*L*k, W)
        scores = asked @ tokens.transpose(1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None, :], torch.finfo(scores.dtype).min)
        found = (scores.softmax(-1) @ tokens).view(B, H, -1, W).transpose(0, 1).flatten(1, 2)  # (H, B*L*k, W)
        context = (found @ to_values.transpose(1, 2)).view(H, B, -1, D // H).permute(1, 2, 0, 3)
        return context.reshape(queries.shape) + self.kv.bias[D:].to(queries.dtype)

    def recorded(self, queries: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        """The same with the attention probabilities (R, H, L, N) written out, kept in `maps` and in the graph."""
        (q,), (k, v) = split_heads(queries, 1, self.heads), kv.repeat_interleave(len(queries) // kv.shape[1], dim=1)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if mask is not None:
            mask = mask.repeat_interleave(len(queries) // len(mask), dim=0)
            scores = scores.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(scores.dtype).min)
        probabilities = scores.softmax(-1)
        if torch.is_grad_enabled() and not probabilities.requires_grad:
            probabilities.requires_grad_()  # of a frozen model
        self.maps.append(probabilities)
        return merge_heads(F.dropout(probabilities, self.drop if self.training else 0.0) @ v)


class CrossAttention(CrossRead):
    """Post-LN cross-attention to one image."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, kv: Tensor, mask: Tensor | None, others: Tensor | None) -> Tensor:
        return self.norm(x + self.dropout(self.read(x, kv, mask, others)))


class TwinCrossAttention(nn.Module):
    """Post-LN cross-attention to two images, each with weights of its own; the mean of both, or a learned merge."""

    def __init__(self, config: TextConfig, merge: bool) -> None:
        super().__init__()
        self.first, self.second = CrossRead(config), CrossRead(config)
        self.merge = nn.Linear(2 * config.width, config.width) if merge else None
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def image_kv(self, image_embeds: Tensor) -> Tensor:
        first, second = image_embeds.unbind(1)
        return torch.cat([self.first.image_kv(first), self.second.image_kv(second)])

    def forward(self, x: Tensor, kv: Tensor, mask: Tensor | None, others: Tensor | None) -> Tensor:
        pairs = zip((self.first, self.second), kv.chunk(2), strict=True)
        first, second = (cross.read(x, half, mask, others) for cross, half in pairs)
        both = (first + second) / 2 if self.merge is None else self.merge(torch.cat([first, second], dim=-1))
        return self.norm(x + self.dropout(both))
