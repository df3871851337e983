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
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.vit import attend, init_std, recomputed, require_sizes

Share = Literal["all", "all-but-sa", "all-but-ca", "none"]
Append = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # see `KVCache.append`


@dataclass
class TextConfig:
    """Sizes of the text transformer; the defaults are BERT-base with BLIP's two extra tokens."""

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    encoder_width: int = 768  # width of the states that cross-attention reads
    dropout: float = 0.1
    eps: float = 1e-12
    roles: tuple[str, ...] = ("encode", "decode")
    share: Share = (
        "all-but-sa"  # what the roles have in common (SA, CA: self- and cross-attention); BLIP's is the default
    )
    merge_from: int | None = None  # two images a text (NLVR2); from this layer on, what they tell is merged by weights

    def __post_init__(self) -> None:
        require_sizes(self, "vocab_size", "width", "depth", "heads", "hidden", "max_positions", "encoder_width")
        self.roles = tuple(self.roles)
        if not self.roles or set(self.roles) - {"encode", "decode"}:
            raise ValueError(f"text roles are 'encode' and 'decode', not {self.roles}")
        if self.share not in get_args(Share):
            raise ValueError(f"share is one of {', '.join(get_args(Share))}, not {self.share!r}")
        if self.width % self.heads:
            raise ValueError(f"text width {self.width} is not a multiple of its {self.heads} heads")


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

    def first(self, n: int) -> "ImageKV":
        """The first n images, without a copy."""
        if n == len(self):
            return self
        return ImageKV(self.each(lambda kv: kv[:, :n]), self.mask[:n] if self.mask is not None else None)

    def select(self, index: Tensor) -> "ImageKV":
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
