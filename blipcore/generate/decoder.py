"""The decoder at work on a batch of pictures: new tokens in, logits of the next ones out, step after step.

In: a text transformer and what it reads of B images. Out: logits; the self-attention cache and the images' keys and
values are kept here, and rows leave or change places by `select`.

A step is some three hundred small operations. A GPU is done with one sooner than Python has started the next, so there
steps are recorded as CUDA graphs, one for each number of pictures, and replayed: `Steps`, `Replayed`.
"""

from torch import Tensor

from blipcore.model.attention import ImageKV, KVCache
from blipcore.model.text import TextTransformer

# Finished pictures are carried along until they are this share of the batch: dropping them copies the image tokens, or
# keys and values, of all others, which costs as much as several steps.
DROP_SHARE = 0.25


class Decoding:
    """One batch of B pictures, of which each has k texts of at most `length` tokens, k rows in succession."""

    def __init__(self, text: TextTransformer, kv: ImageKV, length: int) -> None:
        self.text, self.kv, self.length = text, kv, length
        self.cache: KVCache | None = None

    def read(self, ids: Tensor) -> Tensor:
        """Float32 logits (R, V) of what follows `ids` (R, L), new tokens of every row; good until the next call."""
        if self.cache is None:
            self.cache = self.text.new_cache(len(ids), self.length)
        return _next(self.text, ids, self.kv, self.cache)

    def select(self, rows: Tensor, pictures: Tensor | None = None) -> None:
        """Keep these rows, in this order and with repetition, and the images `pictures` (None: all of them)."""
        self.cache.select(rows)
        if pictures is not None:
            self.kv = self.kv.select(pictures)

    def worth_dropping(self, left: int) -> bool:
        """Whether it saves time to go on without the pictures that are finished, with those that are `left`."""
        return left <= (1 - DROP_SHARE) * len(self.kv)


def _next(text: TextTransformer, ids: Tensor, kv: ImageKV, cache: KVCache) -> Tensor:
    return text.logits(text.decode(ids, None, kv, cache)[:, -1]).float()


# ---------------------------------------------------------------------------------------------------- CUDA graphs
