"""Attention of the image encoder and the text transformer, and the keys and values that text attends to.

Dimension letters in the shapes of this package:

    B  images or texts            R  rows, each a text or an image-text pair
    S  image side in pixels       N  image tokens: one class token and one per patch
    W  image encoder width        L  text tokens
    D  text transformer width     H  attention heads of d = D / H channels
    V  vocabulary size            E  width of the joint ITC space
    Q  queue length
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blipcore.model.config import TextConfig

# The signature of `KVCache.append` for one layer.
Append = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Return scaled dot-product attention of queries (..., H, L, d) over keys (..., H, N, d).

    True in a boolean `mask` allows; a mask of numbers is added to the scores.

    In bfloat16 on a CPU the products are written out: in training, torch's fused kernel takes 2 to 8 times longer there
    (torch 2.13, 37 to 577 tokens). Elsewhere the fused kernel is as fast or faster.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return F.dropout(apply_mask(scores, mask).softmax(-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def apply_mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention scores where a boolean mask is True, or with a mask of numbers added to them."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask.to(scores.dtype)


def call_with_recompute(layer: nn.Module, *inputs: object) -> Tensor:
    """Return `layer(*inputs)`, whose activations are recomputed in the backward pass."""
    return checkpoint(layer, *inputs, use_reentrant=False)


def init_std(width: int) -> float:
    """Return the standard deviation of new weights: BERT's 0.02 from width 768 on, more in narrower models.

    A layer's output grows with sqrt(width) times this value. With 0.02 at width 128, queries and keys are so small that
    attention stays flat: a captioner takes a thousand steps to name the second object of an image.
    """
    return 0.02 * max(1.0, 768 / width) ** 0.5


@dataclass
class ImageKV:
    """Cross-attention keys and values of B images, one item of shape (2, B, H, N, d) per layer.

    - If the roles have separate cross-attention, the encoder's layers come first and the decoder's last.
    - Image pairs (NLVR2) have items (4, B, H, N, d): keys and values of the first images, then of the second.
    - Items (1, B, N, W) hold the image tokens themselves; see `MultiHeadCrossAttention`.

    `mask` (B, N) is 1 for the tokens that may be attended to; None means all. A mask of floats weights the tokens: one
    of 3.0 counts as three equal ones (see `inference.merge_tokens`).
    """

    layers: list[Tensor]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.layers[0].shape[1]

    def first(self, n: int) -> ImageKV:
        """Return a view of the first `n` images."""
        if n == len(self):
            return self
        return ImageKV(self.map_layers(lambda kv: kv[:, :n]), self.mask[:n] if self.mask is not None else None)

    def select(self, index: Tensor) -> ImageKV:
        """Return a copy of the images at `index` (R,), which may repeat."""
        mask = self.mask.index_select(0, index) if self.mask is not None else None
        return ImageKV(self.map_layers(lambda kv: kv.index_select(1, index)), mask)

    def map_layers(self, function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return `function` of each item, called once for a shared item."""
        unique = {id(kv): kv for kv in self.layers}
        results = {key: function(kv) for key, kv in unique.items()}
        return [results[id(kv)] for kv in self.layers]


@dataclass
class KVCache:
    """Preallocated self-attention keys and values of the decoder; the first `length` tokens of each row are filled."""

    data: Tensor  # (depth, 2, R, H, longest text, d)
    length: int = 0

    def positions(self, new: int) -> Tensor:
        """Return the positions (new,) of the next `new` tokens."""
        return torch.arange(self.length, self.length + new, device=self.data.device)

    def allowed(self, new: int) -> Tensor | None:
        """Return the causal mask (new, length + new) of the next `new` tokens; None if all of it is True."""
        return None if new == 1 else causal_mask(self.length, new, self.data.device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (R, H, new, d) of new tokens; return those of all tokens so far."""
        end = self.length + k.shape[2]
        self.data[layer, 0, :, :, self.length : end] = k
        self.data[layer, 1, :, :, self.length : end] = v
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def advance(self, new: int) -> None:
        """Count `new` tokens as filled, after all layers have appended them."""
        self.length += new

    def select(self, index: Tensor) -> None:
        """Keep the rows at `index`, in this order: reorders beams and drops finished rows."""
        self.data = self.data.index_select(2, index)


def causal_mask(start: int, new: int, device: torch.device) -> Tensor:
    """Return (new, start + new) booleans: each new token sees itself and every earlier token."""
    return torch.ones(new, start + new, dtype=torch.bool, device=device).tril(start)


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask of `attend` for the mask of an `ImageKV`: booleans, or the logarithms of weights in `dtype`."""
    return mask.log().to(dtype) if mask.is_floating_point() else mask.bool()


def split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """Reshape (R, L, parts*D) to (parts, R, H, L, d)."""
    R, L, width = x.shape
    return x.view(R, L, parts, heads, width // parts // heads).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape (R, H, L, d) to (R, L, D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Post-LN self-attention over text tokens."""

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


class MultiHeadCrossAttention(nn.Module):
    """Attention of text queries (k*B, L, D) to B images, without residual and norm.

    Rows b*k to b*k+k-1 of the queries attend to image b. They are computed as one long sequence, so the keys and values
    of an image are read once. `others` (n,) are the images of the last n rows, which are in no such order; only the
    keys and values of these images are copied.

    The image side is keys and values (2, B, H, N, d) from `image_kv`, or image tokens (1, B, N, W):

    - Keys and values cost 4NWD operations per layer and serve all texts of the image.
    - Image tokens need none: with projections K and V, a query q and a token t, q(Kt) = (qK)t and sum(p Vt) =
      V sum(pt), so K and V can be applied on the text side. This costs 4NWH per text token, less for up to D/H text
      tokens per image: one caption, or a few short texts.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads, self.drop = config.heads, config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.encoder_width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def image_kv(self, image_embeds: Tensor) -> Tensor:
        """Return keys and values (2, B, H, N, d) of image tokens (B, N, W)."""
        return split_heads(self.kv(image_embeds), 2, self.heads)

    def attend_images(
        self, x: Tensor, kv: Tensor, mask: Tensor | None, others: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        """Attend from rows `x` (R, L, D) to their images; append attention probabilities to `maps`."""
        queries = self.query(x)
        if others is None:
            return self.out(self._context(queries, kv, mask, maps))
        ordered, rest = queries.split([len(x) - len(others), len(others)])
        rest_mask = mask.index_select(0, others) if mask is not None else None
        contexts = [
            self._context(ordered, kv, mask, maps),
            self._context(rest, kv.index_select(1, others), rest_mask, maps),
        ]
        return self.out(torch.cat(contexts))

    def _context(self, queries: Tensor, kv: Tensor, mask: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        if kv.ndim == 4:
            return self._context_from_tokens(queries, kv[0], mask)
        if maps is not None:
            return self._context_with_maps(queries, kv, mask, maps)
        (q,) = split_heads(queries.reshape(kv.shape[1], -1, queries.shape[-1]), 1, self.heads)
        # Indexing instead of unbind would allocate two zero tensors of the size of kv in the backward pass.
        k, v = kv.unbind()
        bias = attention_bias(mask, q.dtype)[:, None, None, :] if mask is not None else None
        return merge_heads(attend(q, k, v, bias, self.drop if self.training else 0.0)).view_as(queries)

    def _context_from_tokens(self, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Attend to image tokens (B, N, W) without computing their keys and values.

        The key bias is left out: it adds one number to all scores of a query, which the softmax cancels.
        """
        (B, _, W), H, D = tokens.shape, self.heads, queries.shape[-1]
        to_keys, to_values = self.kv.weight.view(2, H, D // H, W).to(queries.dtype)
        tokens = tokens.to(queries.dtype)
        q = queries.reshape(B, -1, H, D // H).permute(2, 0, 1, 3) * (D // H) ** -0.5  # (H, B, L*k, d)
        q_keys = (q.flatten(1, 2) @ to_keys).view(H, B, -1, W).transpose(0, 1).flatten(1, 2)  # (B, H*L*k, W)
        scores = q_keys @ tokens.transpose(1, 2)
        if mask is not None:
            scores = apply_mask(scores, attention_bias(mask, scores.dtype)[:, None, :])
        averages = (scores.softmax(-1) @ tokens).view(B, H, -1, W).transpose(0, 1).flatten(1, 2)  # (H, B*L*k, W)
        context = (averages @ to_values.transpose(1, 2)).view(H, B, -1, D // H).permute(1, 2, 0, 3)
        return context.reshape(queries.shape) + self.kv.bias[D:].to(queries.dtype)

    def _context_with_maps(self, queries: Tensor, kv: Tensor, mask: Tensor | None, maps: list[Tensor]) -> Tensor:
        """Attend, and append the probabilities (R, H, L, N) to `maps` as part of the graph."""
        (q,), (k, v) = split_heads(queries, 1, self.heads), kv.repeat_interleave(len(queries) // kv.shape[1], dim=1)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if mask is not None:
            mask = mask.repeat_interleave(len(queries) // len(mask), dim=0)
            scores = apply_mask(scores, attention_bias(mask, scores.dtype)[:, None, None, :])
        probabilities = scores.softmax(-1)
        if torch.is_grad_enabled() and not probabilities.requires_grad:
            # The weights are frozen, but Grad-CAM needs the gradient from here on.
            probabilities.requires_grad_()
        maps.append(probabilities)
        return merge_heads(F.dropout(probabilities, self.drop if self.training else 0.0) @ v)


class CrossAttention(MultiHeadCrossAttention):
    """Post-LN cross-attention to one image."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, kv: Tensor, mask: Tensor | None, others: Tensor | None, maps: list[Tensor] | None = None
    ) -> Tensor:
        return self.norm(x + self.dropout(self.attend_images(x, kv, mask, others, maps)))


class TwinCrossAttention(nn.Module):
    """Post-LN cross-attention to two images with separate weights, averaged or merged by a linear layer (NLVR2).

    In the official models/nlvr_encoder.py, layers 0 to 5 average and layers 6 to 11 merge.
    """

    def __init__(self, config: TextConfig, merge: bool) -> None:
        super().__init__()
        self.first, self.second = MultiHeadCrossAttention(config), MultiHeadCrossAttention(config)
        self.merge = nn.Linear(2 * config.width, config.width) if merge else None
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def image_kv(self, image_embeds: Tensor) -> Tensor:
        """Return keys and values (4, B, H, N, d) of image pairs (B, 2, N, W)."""
        first, second = image_embeds.unbind(1)
        return torch.cat([self.first.image_kv(first), self.second.image_kv(second)])

    def forward(
        self, x: Tensor, kv: Tensor, mask: Tensor | None, others: Tensor | None, maps: list[Tensor] | None = None
    ) -> Tensor:
        first_kv, second_kv = kv.chunk(2)
        first = self.first.attend_images(x, first_kv, mask, others, maps)
        second = self.second.attend_images(x, second_kv, mask, others, maps)
        combined = (first + second) / 2 if self.merge is None else self.merge(torch.cat([first, second], dim=-1))
        return self.norm(x + self.dropout(combined))
