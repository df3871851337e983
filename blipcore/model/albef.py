"""ALBEF: BLIP's predecessor, whose text encoder reads the image in its upper half only (arXiv 2107.07651).

Layers 0 to 5 of 12 encode the text alone, for ITC; layers 6 to 11 continue from their output with cross-attention to
the image, for ITM. Both start with [CLS]. Names of parameters are BLIP's.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.attention import CrossAttention, SelfAttention
from blipcore.model.config import BlipConfig, TextConfig
from blipcore.model.text import Embeddings, FeedForward
from blipcore.model.vit import VisionTransformer


class AlbefTextLayer(nn.Module):
    """Self-attention, cross-attention in the upper layers, feed-forward."""

    def __init__(self, config: TextConfig, fused: bool) -> None:
        super().__init__()
        self.encode = SelfAttention(config)
        self.cross = CrossAttention(config) if fused else None
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor, kv: Tensor | None) -> Tensor:
        x = self.encode(x, mask)
        if self.cross is not None and kv is not None:
            x = self.cross(x, kv, None, None)
        return self.ffn(x)


class AlbefText(nn.Module):
    """ALBEF's text encoder. Token ids are (R, L) int64; masks are (R, L), 1 on tokens and 0 on padding."""

    def __init__(self, config: TextConfig, fusion_layer: int) -> None:
        super().__init__()
        self.fusion_layer = fusion_layer
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(AlbefTextLayer(config, index >= fusion_layer) for index in range(config.depth))

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return unimodal states (R, L, D); position 0 holds [CLS]."""
        x = self.embeddings(ids)
        for layer in self.layers[: self.fusion_layer]:
            x = layer(x, mask.bool()[:, None, None, :], None)
        return x

    def image_kv(self, image_embeds: Tensor) -> list[Tensor]:
        """Return keys and values (2, B, H, N, d) of image tokens (B, N, W), one item per fused layer."""
        crosses = [cast(CrossAttention, layer.cross) for layer in self.layers[self.fusion_layer :]]
        return [cross.image_kv(image_embeds) for cross in crosses]

    def fuse(self, states: Tensor, mask: Tensor, kv: list[Tensor]) -> Tensor:
        """Return image-grounded states (R, L, D) of unimodal states; row r attends to image r of `kv`."""
        for layer, layer_kv in zip(self.layers[self.fusion_layer :], kv, strict=True):
            states = layer(states, mask.bool()[:, None, None, :], layer_kv)
        return states


class Albef(nn.Module):
    """ALBEF's image encoder, text encoder and heads, without momentum copies.

    The text layers from `fusion_layer` on read the image.
    """

    def __init__(self, config: BlipConfig, fusion_layer: int) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTransformer(config.vision)
        self.text = AlbefText(config.text, fusion_layer)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.itm_head = nn.Linear(config.text.width, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return image_embeds (B, N, W) of pixels (B, 3, S, S), uint8 or normalised."""
        return self.visual_encoder(pixels)

    def image_feat(self, image_embeds: Tensor) -> Tensor:
        """Return unit vectors (B, E) of images in the ITC space."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]).float(), dim=-1)

    def text_feat(self, states: Tensor) -> Tensor:
        """Return unit vectors (R, E) of unimodal text states (R, L, D) in the ITC space."""
        return F.normalize(self.text_proj(states[:, 0]).float(), dim=-1)

    def itm_logits(self, fused: Tensor) -> Tensor:
        """Return logits (R, 2) of image-grounded states (R, L, D); class 1 is "matched"."""
        return self.itm_head(fused[:, 0]).float()
