"""The text transformer (the paper's MED): one BERT-shaped body that plays three roles.

    encode   unimodal encoder          self-attention "encode", no image
    fuse     image-grounded encoder    self-attention "encode" + cross-attention to image tokens
    decode   image-grounded decoder    self-attention "decode" (causal) + cross-attention to image tokens

Everything but self-attention and the LM head is shared between encoder and decoder (Table 3, "all but SA"), and shared
by construction: there is one module, not two tied ones, so it can be sharded. Cross-attention keys and values depend
on the image alone: `image_kv` computes them once, every role and every text of the image reuses them, or leaves them
out where few words will be read with the image. The other ways of sharing in Table 3 are there for ablations
(`TextConfig.share`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.attention import (
    Append,
    CrossAttention,
    ImageKV,
    KVCache,
    SelfAttention,
    TwinCrossAttention,
    init_std,
    recomputed,
)
from blipcore.model.config import TextConfig


class Embeddings(nn.Module):
    """Word plus absolute position, LayerNorm, dropout; BLIP has no token-type embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # Without PyTorch's own initialisation, which `TextTransformer` overwrites (and see `_init` there).
        self.word = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.width), freeze=False)
        self.position = nn.Embedding.from_pretrained(torch.empty(config.max_positions, config.width), freeze=False)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        words = ids if ids.is_floating_point() else self.word(ids)
        return self.dropout(self.norm(words + self.position(positions)))


class FeedForward(nn.Module):
    """Post-LN feed-forward with the exact (erf) GELU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


def per_role(config: TextConfig, shared: bool, build: Callable[[], nn.Module]) -> tuple[nn.Module | None, ...]:
    """The encoder's and the decoder's module, None for a role that is not there; where `shared`, one for both."""
    if shared:
        return build(), None
    return tuple(build() if role in config.roles else None for role in ("encode", "decode"))


class TextLayer(nn.Module):
    """Self-attention of the role, cross-attention when there is an image (or a pair), feed-forward."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        share = config.share
        self.encode, self.decode = per_role(config, share in ("all", "all-but-ca"), lambda: SelfAttention(config))
        if config.merge_from is None:
            cross = partial(CrossAttention, config)
        else:
            cross = partial(TwinCrossAttention, config, merge=index >= config.merge_from)
        self.cross, self.decode_cross = per_role(config, share in ("all", "all-but-sa"), cross)
        self.ffn, self.decode_ffn = per_role(config, share != "none", lambda: FeedForward(config))

    def forward(
        self,
        x: Tensor,
        role: str,
        mask: Tensor | None,
        kv: Tensor | None,
        image_mask: Tensor | None = None,
        others: Tensor | None = None,
        append: Append | None = None,
    ) -> Tensor:
        attention, cross, ffn = self.encode, self.cross, self.ffn
        if role == "decode":
            attention, cross, ffn = self.decode or attention, self.decode_cross or cross, self.decode_ffn or ffn
        x = attention(x, mask, append)
        if kv is not None:
            x = cross(x, kv, image_mask, others)
        return ffn(x)


class LMHead(nn.Module):
    """BERT's masked-LM transform and an output bias; the output matrix is the word embedding, passed in."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word, self.bias)


class TextTransformer(nn.Module):
    """The three-mode text transformer; masks are (R, L) with 1 on tokens and 0 on padding.

    Ids are (R, L) int64, or in their place the word vectors (R, L, D) that `look_up` gives for them.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings, self.decode_embeddings = per_role(config, config.share != "none", lambda: Embeddings(config))
        self.layers = nn.ModuleList(TextLayer(config, index) for index in range(config.depth))
        self.steps: Any = None  # `decoding.Steps` where they are recorded
        self.recompute = 0  # of so many layers, the last ones, activations are not kept but computed again
        self.lm_head = LMHead(config) if "decode" in config.roles else None
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.is_meta:
            return  # drawing normal numbers on the meta device would import torch's compiler: over a second
        nn.init.normal_(module.weight, std=init_std(self.config.width))
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def image_kv(
        self, image_embeds: Tensor, mask: Tensor | None = None, *, text_tokens: float | None = None
    ) -> ImageKV:
        """Cross-attention keys and values of (B, N, W) image tokens, for any number of texts and both roles.

        Image pairs are (B, 2, N, W). VQA's answer decoder reads question states in their place, padded as `mask` says.
        With `text_tokens`, of all texts that will be read with one image (but not of pairs), they are left out where
        that is less work.
        """
        crosses = [layer.cross for layer in self.layers] + [layer.decode_cross for layer in self.layers]
        crosses = [cross for cross in crosses if cross is not None]
        if text_tokens is None:
            return ImageKV([cross.image_kv(image_embeds) for cross in crosses], mask)
        if text_tokens < self.config.width / self.config.heads:
            return ImageKV([image_embeds[None]] * len(crosses), mask)
        # once in the order of the products, which else would copy them there at every step
        return ImageKV([cross.image_kv(image_embeds).contiguous() for cross in crosses], mask)

    def look_up(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """Word vectors (R, L, D) of several ids (R, L) at once, for passes of either role.

        The gradient of a look-up is as large as the vocabulary; of three, two have to be added up. Where the roles have
        words of their own, the ids come back and each pass looks up by itself.
        """
        if self.decode_embeddings is not None:
            return ids
        return self.embeddings.word(torch.stack(ids)).unbind()

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unimodal text states (R, L, D); position 0 holds [CLS]."""
        return self._encoder(ids, mask, None)

    def fuse(self, ids: Tensor, mask: Tensor, kv: ImageKV, others: Tensor | None = None) -> Tensor:
        """Image-grounded text states (R, L, D); position 0 holds [ENC].

        Row r attends to image r of `kv`, or, where there are k times as many rows, to image r // k. With `others`
        (n,) this holds for all but the last n rows, which attend to the images that it names.
        """
        return self._encoder(ids, mask, kv, others)

    def _encoder(self, ids: Tensor, mask: Tensor, kv: ImageKV | None, others: Tensor | None = None) -> Tensor:
        return self._layers(self.embeddings(ids), "encode", mask.bool()[:, None, None, :], kv, others)

    def _layers(
        self,
        x: Tensor,
        role: str,
        allowed: Tensor | None,
        kv: ImageKV | None,
        others: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        depth = len(self.layers)
        for i, layer in enumerate(self.layers):
            image = kv.layers[i if role == "encode" else i - depth] if kv is not None else None
            append = partial(cache.append, i) if cache is not None else None
            inputs = (x, role, allowed, image, kv.mask if kv is not None else None, others, append)
            x = recomputed(layer, *inputs) if self.training and i >= depth - self.recompute else layer(*inputs)
        return x

    def decode(self, ids: Tensor, mask: Tensor | None, kv: ImageKV, cache: KVCache | None = None) -> Tensor:
        """Causal image-grounded text states (R, L, D).

        With a cache, `ids` are the new tokens only, `mask` is None (generated rows have no padding) and the cache
        moves forward by their number.
        """
        start, new = (cache.length if cache is not None else 0), ids.shape[1]
        if cache is not None and cache.at is not None:
            positions = cache.at
            allowed = torch.arange(cache.data.shape[4], device=ids.device)[None] <= positions
        else:
            positions = torch.arange(start, start + new, device=ids.device)
            allowed = torch.ones(new, start + new, dtype=torch.bool, device=ids.device).tril(start)
            if mask is not None:
                allowed = allowed & mask.bool()[:, None, None, :]
            elif new == 1:
                allowed = None  # one new token sees everything before it
        x = self._decoder_embeddings()(ids, positions)
        x = self._layers(x, "decode", allowed, kv, None, cache)
        if cache is not None:
            cache.length += new
        return x

    def _decoder_embeddings(self) -> Embeddings:
        return self.embeddings if self.decode_embeddings is None else self.decode_embeddings

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (..., V) of decoder states."""
        return self.lm_head(hidden, self._decoder_embeddings().word.weight)

    def new_cache(self, rows: int, length: int) -> KVCache:
        """An empty decoder cache for `rows` sequences of at most `length` tokens.

        Its precision is that of the matrix products: the autocast type where autocast is on, else the weights'.
        """
        like = self._decoder_embeddings().word.weight
        if torch.is_autocast_enabled(like.device.type):
            like = like.new_empty(0, dtype=torch.get_autocast_dtype(like.device.type))
        config = self.config
        shape = (config.depth, 2, rows, config.heads, length, config.width // config.heads)
        return KVCache(like.new_empty(shape))
