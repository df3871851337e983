"""Runs the text decoder over a batch, from prompts or next tokens to the logits of the tokens after them."""

from torch import Tensor

from blipcore.model.attention import ImageKV, KVCache
from blipcore.model.text import TextTransformer

# Finished images stay in the batch until they are this share of it: dropping them copies the keys and values of the
# others, which costs several steps.
DROP_SHARE = 0.25


class Decoder:
    """The text decoder on a batch of B images, with its self-attention cache.

    Each image has k texts of at most `length` tokens in k successive rows, R = k*B in total.
    """

    def __init__(self, text: TextTransformer, kv: ImageKV, length: int) -> None:
        self.text, self.kv, self.length = text, kv, length
        self.cache: KVCache  # set by `prefill`

    def prefill(self, ids: Tensor) -> Tensor:
        """Read the prompts (R, L); return float32 logits (R, V) of the tokens after them."""
        self.cache = self.text.new_cache(len(ids), self.length)
        return next_logits(self.text, ids, self.kv, self.cache)

    def step(self, ids: Tensor) -> Tensor:
        """Read one more token per row (R, 1); return float32 logits (R, V), valid until the next call."""
        return next_logits(self.text, ids, self.kv, self.cache)

    def select(self, rows: Tensor, images: Tensor | None = None) -> None:
        """Keep these rows, in this order, possibly repeated, and these images (None: all)."""
        self.cache.select(rows)
        if images is not None:
            self.kv = self.kv.select(images)

    def should_drop_finished(self, remaining: int) -> bool:
        """Return True if dropping all but the `remaining` unfinished images saves time."""
        return remaining <= (1 - DROP_SHARE) * len(self.kv)


def next_logits(text: TextTransformer, ids: Tensor, kv: ImageKV, cache: KVCache) -> Tensor:
    """Return float32 logits (R, V) of the token after `ids` (R, new)."""
    return text.logits(text.decode_next(ids, kv, cache)[:, -1]).float()
