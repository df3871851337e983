"""Token merging in the image encoder (ToMe, Bolya et al., arXiv 2210.09461): fewer tokens per layer, without training.

After the attention of each block, the most similar pairs of tokens become one, their mean weighted by the patches that
they stand for. A token of n patches counts n times in later attention, in the text's cross-attention too. The class
token is never merged into another.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.attention import attend
from blipcore.model.vit import Block, VisionTransformer


class MergingEncoder(nn.Module):
    """Map pixels (B, 3, S, S) to image tokens (B, M, W) and their numbers of patches (B, M).

    `merges` tokens disappear per block, as far as there are tokens left: a block can halve them at most.
    """

    def __init__(self, encoder: VisionTransformer, merges: int) -> None:
        super().__init__()
        self.config, self.encoder = encoder.config, encoder
        counts = merges_per_block(encoder, merges)
        self.blocks = nn.ModuleList(MergingBlock(block, n) for block, n in zip(encoder.blocks, counts, strict=True))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        chunks = [self._encode(chunk) for chunk in pixels.split(self.encoder.chunk_size or len(pixels))]
        tokens, sizes = zip(*chunks, strict=True)
        return torch.cat(tokens), torch.cat(sizes)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder.embed(pixels)
        sizes = torch.ones(x.shape[:2], device=x.device)
        for block in self.blocks:
            x, sizes = block(x, sizes)
        return self.encoder.norm(x), sizes


class MergingBlock(nn.Module):
    """A block of the image encoder that merges `merges` tokens between its attention and its MLP."""

    def __init__(self, block: nn.Module, merges: int) -> None:
        super().__init__()
        assert isinstance(block, Block)
        self.block, self.merges = block, merges

    def forward(self, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        block = self.block
        q, k, v = block.attn.split(block.norm1(x))
        weights = sizes.log()[:, None, None, :].to(q.dtype)
        x = x + block.attn.join(attend(q, k, v, weights))
        if self.merges:
            x, sizes = merge_tokens(x, k.mean(1), sizes, self.merges)
        return x + block.mlp(block.norm2(x)), sizes


def merges_per_block(encoder: VisionTransformer, merges: int) -> list[int]:
    """Return the number of tokens that each block merges. Raises ValueError for a negative number."""
    if merges < 0:
        raise ValueError(f"merge_tokens is a number of tokens per layer, at least 0, not {merges}.")
    tokens, counts = encoder.pos_embed.shape[1], []
    for _ in encoder.blocks:
        counts.append(min(merges, (tokens - 1) // 2))
        tokens -= counts[-1]
    return counts


def merge_tokens(x: Tensor, keys: Tensor, sizes: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Merge the `merges` most similar pairs of tokens `x` (B, N, W); return tokens (B, N - merges, W) and sizes.

    Bipartite soft matching: tokens of even position propose their most similar token of odd position, by the cosine of
    their `keys` (B, N, d), and the best proposals are merged. `sizes` (B, N) are the patches per token. The class token
    stays at position 0.
    """
    W = x.shape[2]
    keys = F.normalize(keys.float(), dim=-1)
    similarity = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    similarity[:, 0] = -2.0  # below any cosine: the class token is the last to merge
    best, partner = similarity.max(-1)
    order = best.argsort(dim=1, descending=True, stable=True)
    # The least similar tokens come first, so the class token stays in front.
    merged, kept = order[:, :merges], order[:, merges:].flip(1)
    partner = partner.gather(1, merged)
    sums = torch.cat([x.float() * sizes[..., None], sizes[..., None]], dim=-1)  # (B, N, W+1)
    even, odd = sums[:, ::2], sums[:, 1::2]
    added = even.gather(1, merged[..., None].expand(-1, -1, W + 1))
    odd = odd.scatter_add(1, partner[..., None].expand(-1, -1, W + 1), added)
    sums = torch.cat([even.gather(1, kept[..., None].expand(-1, -1, W + 1)), odd], dim=1)
    return (sums[..., :W] / sums[..., W:]).to(x.dtype), sums[..., W]
