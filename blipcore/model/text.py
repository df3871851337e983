"""The text transformer: one BERT-shaped body with three roles (the paper's MED, section 3.1; models/med.py).

    encode   unimodal encoder          self-attention "encode", no image
    fuse     image-grounded encoder    self-attention "encode" + cross-attention to image tokens
    decode   image-grounded decoder    self-attention "decode" (causal) + cross-attention to image tokens

Encoder and decoder share everything but self-attention and the LM head (paper table 3, "all but SA"): one module, not
two tied ones, so that it can be sharded. `TextConfig.share` selects another row of table 3; only then modules named
`decode_…` exist.

Cross-attention keys and values depend on the image alone: `image_kv` computes them once for all roles, texts and
decoding steps.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

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
    call_with_recompute,
    causal_mask,
    init_std,
)
from blipcore.model.config import TextConfig

M = TypeVar("M", bound=nn.Module)


class Embeddings(nn.Module):
    """Word plus position embedding, LayerNorm, dropout; BLIP has no token-type embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # Left uninitialised for `TextTransformer._init`, or for loading.
        self.word = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.width), freeze=False)
        self.position = nn.Embedding.from_pretrained(torch.empty(config.max_positions, config.width), freeze=False)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed token ids (R, L), by default at positions 0 to L-1."""
        return self.embed_words(self.word(ids), positions)

    def embed_words(self, words: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed word vectors (R, L, D), by default at positions 0 to L-1."""
        if positions is None:
            positions = torch.arange(words.shape[1], device=words.device)
        return self.dropout(self.norm(words + self.position(positions)))


class FeedForward(nn.Module):
    """Post-LN feed-forward network with the exact (erf) GELU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


def build_per_role(config: TextConfig, shared: bool, build: Callable[[], M]) -> tuple[M | None, M | None]:
    """Return the encoder's and the decoder's module: (module, None) if shared, else None for a missing role."""
    if shared:
        return build(), None
    encoder = build() if "encode" in config.roles else None
    decoder = build() if "decode" in config.roles else None
    return encoder, decoder


class TextLayer(nn.Module):
    """Self-attention, cross-attention if there is an image or an image pair, feed-forward."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        share = config.share
        self.encode, self.decode = build_per_role(config, share in ("all", "all-but-ca"), lambda: SelfAttention(config))

        def build_cross() -> CrossAttention | TwinCrossAttention:
            if config.merge_from is None:
                return CrossAttention(config)
            return TwinCrossAttention(config, merge=index >= config.merge_from)

        self.cross, self.decode_cross = build_per_role(config, share in ("all", "all-but-sa"), build_cross)
        self.ffn, self.decode_ffn = build_per_role(config, share != "none", lambda: FeedForward(config))

    def forward(
        self,
        x: Tensor,
        role: str,
        mask: Tensor | None,
        kv: Tensor | None,
        image_mask: Tensor | None = None,
        others: Tensor | None = None,
        append: Append | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Transform states (R, L, D). For `kv`, `image_mask`, `others` and `maps` see `MultiHeadCrossAttention`."""
        attention, cross, ffn = self.encode, self.cross, self.ffn
        if role == "decode":
            attention, cross, ffn = self.decode or attention, self.decode_cross or cross, self.decode_ffn or ffn
        assert attention is not None and cross is not None and ffn is not None, f"no role {role!r}"
        x = attention(x, mask, append)
        if kv is not None:
            x = cross(x, kv, image_mask, others, maps)
        return ffn(x)


class LMHead(nn.Module):
    """BERT's masked-LM head, whose output matrix is the word embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word, self.bias)


class TextTransformer(nn.Module):
    """The text transformer; each role has a method for token ids and one for word vectors from `look_up`.

    Token ids are (R, L) int64. Masks are (R, L), 1 on tokens and 0 on padding.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings, self.decode_embeddings = build_per_role(
            config, config.share != "none", lambda: Embeddings(config)
        )
        self.layers = nn.ModuleList(TextLayer(config, index) for index in range(config.depth))
        self.lm_head = LMHead(config) if "decode" in config.roles else None
        self._recomputed_layers = 0
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        # On the meta device, drawing numbers would import torch's compiler, which takes over a second.
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.is_meta:
            return
        nn.init.normal_(module.weight, std=init_std(self.config.width))
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def recompute_activations(self, layers: int) -> None:
        """In training, recompute the activations of the last `layers` layers in the backward pass."""
        self._recomputed_layers = layers

    def image_kv(
        self, image_embeds: Tensor, mask: Tensor | None = None, *, text_tokens: float | None = None
    ) -> ImageKV:
        """Return cross-attention keys and values of image tokens (B, N, W), for any number of texts and both roles.

        For NLVR2, `image_embeds` are pairs (B, 2, N, W); for VQA's answer decoder, question states with their padding
        `mask`; for merged tokens `mask` is their sizes. `text_tokens` is the number of text tokens that will attend to
        each image (not to a pair): for few of them, the result holds the image tokens, which is less work (see
        `MultiHeadCrossAttention`).
        """
        layers = cast("list[TextLayer]", list(self.layers))
        candidates = [layer.cross for layer in layers] + [layer.decode_cross for layer in layers]
        crosses = [cross for cross in candidates if cross is not None]
        if text_tokens is None:
            return ImageKV([cross.image_kv(image_embeds) for cross in crosses], mask)
        if text_tokens < self.config.width / self.config.heads:
            return ImageKV([image_embeds[None]] * len(crosses), mask)
        # Contiguous, as the products need them: otherwise every decoding step would copy them.
        return ImageKV([cross.image_kv(image_embeds).contiguous() for cross in crosses], mask)

    def look_up(self, encode: Sequence[Tensor], decode: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Return word vectors (R, L, D) of several ids (R, L), of the encoder and then of the decoder.

        One look-up for all passes of a training step saves gradients of the size of the vocabulary.
        """
        if self.decode_embeddings is None:
            return self._encoder_embeddings().word(torch.stack([*encode, *decode])).unbind()
        encoded = [self._encoder_embeddings().word(ids) for ids in encode]
        return (*encoded, *(self.decode_embeddings.word(ids) for ids in decode))

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return unimodal text states (R, L, D); position 0 holds [CLS]."""
        return self._encode(self._encoder_embeddings()(ids), mask, None)

    def encode_words(self, words: Tensor, mask: Tensor) -> Tensor:
        """`encode` for word vectors (R, L, D)."""
        return self._encode(self._encoder_embeddings().embed_words(words), mask, None)

    def fuse(
        self,
        ids: Tensor,
        mask: Tensor,
        kv: ImageKV,
        others: Tensor | None = None,
        *,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Return image-grounded text states (R, L, D); position 0 holds [ENC].

        Row r attends to image r of `kv`, or to image r // k if there are k rows per image. With `others` (n,), the last
        n rows attend to the images at these indices instead.

        Attention probabilities (R, H, L, N) are appended to `maps`, one tensor per layer and image of a pair.
        """
        return self._encode(self._encoder_embeddings()(ids), mask, kv, others, maps)

    def fuse_words(self, words: Tensor, mask: Tensor, kv: ImageKV, others: Tensor | None = None) -> Tensor:
        """`fuse` for word vectors (R, L, D)."""
        return self._encode(self._encoder_embeddings().embed_words(words), mask, kv, others)

    def decode(self, ids: Tensor, mask: Tensor | None, kv: ImageKV, *, maps: list[Tensor] | None = None) -> Tensor:
        """Return causal image-grounded states (R, L, D); position 0 holds [DEC]. For `maps` see `fuse`.

        Without `mask` there is no padding.
        """
        return self._decode(self._decoder_embeddings()(ids), mask, kv, maps)

    def decode_words(self, words: Tensor, mask: Tensor | None, kv: ImageKV) -> Tensor:
        """`decode` for word vectors (R, L, D)."""
        return self._decode(self._decoder_embeddings().embed_words(words), mask, kv)

    def decode_next(self, ids: Tensor, kv: ImageKV, cache: KVCache) -> Tensor:
        """Return states (R, new, D) of the next tokens of every row, and append their keys and values to `cache`.

        All texts in a cache have the same length, without padding.
        """
        new = ids.shape[1]
        x = self._decoder_embeddings()(ids, cache.positions(new))
        x = self._run_layers(x, "decode", cache.allowed(new), kv, cache=cache)
        cache.advance(new)
        return x

    def _encode(
        self,
        x: Tensor,
        mask: Tensor,
        kv: ImageKV | None,
        others: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        return self._run_layers(x, "encode", mask.bool()[:, None, None, :], kv, others, maps=maps)

    def _decode(self, x: Tensor, mask: Tensor | None, kv: ImageKV, maps: list[Tensor] | None = None) -> Tensor:
        length = x.shape[1]
        allowed: Tensor | None = None
        if mask is not None:
            allowed = causal_mask(0, length, x.device) & mask.bool()[:, None, None, :]
        elif length > 1:
            allowed = causal_mask(0, length, x.device)
        return self._run_layers(x, "decode", allowed, kv, maps=maps)

    def _run_layers(
        self,
        x: Tensor,
        role: str,
        allowed: Tensor | None,
        kv: ImageKV | None,
        others: Tensor | None = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        depth = len(self.layers)
        for i, layer in enumerate(self.layers):
            layer_kv = None
            if kv is not None:
                # The decoder's items are the last; if cross-attention is shared, they are also the encoder's.
                layer_kv = kv.layers[i if role == "encode" else i - depth]
            image_mask = kv.mask if kv is not None else None
            append = partial(cache.append, i) if cache is not None else None
            inputs = (x, role, allowed, layer_kv, image_mask, others, append, maps)
            if self.training and i >= depth - self._recomputed_layers:
                x = call_with_recompute(layer, *inputs)
            else:
                x = layer(*inputs)
        return x

    def _encoder_embeddings(self) -> Embeddings:
        assert self.embeddings is not None, "the model has no text encoder"
        return self.embeddings

    def _decoder_embeddings(self) -> Embeddings:
        return self._encoder_embeddings() if self.decode_embeddings is None else self.decode_embeddings

    def logits(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits (..., V) of decoder states (..., D)."""
        assert self.lm_head is not None, "the model has no text decoder"
        return self.lm_head(hidden, self._decoder_embeddings().word.weight)

    def new_cache(self, rows: int, length: int) -> KVCache:
        """Return an empty cache for `rows` texts of at most `length` tokens.

        It has the number format of the matrix products: that of autocast, else of the weights.
        """
        like = self._decoder_embeddings().word.weight
        if torch.is_autocast_enabled(like.device.type):
            like = like.new_empty(0, dtype=torch.get_autocast_dtype(like.device.type))
        config = self.config
        shape = (config.depth, 2, rows, config.heads, length, config.width // config.heads)
        return KVCache(like.new_empty(shape))
