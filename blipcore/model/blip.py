"""BLIP: the image encoder, the text transformer and the heads on top (paper section 3.1).

The parts depend on the task. A pre-training model has both text roles and the ITC and ITM heads, a captioner only the
decoder, a retrieval model (the filter) the encoder and both heads. A VQA model encodes the question and has a second
text transformer, the answer decoder. An NLVR model reads two images and has a classifier.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.config import BlipConfig
from blipcore.model.text import TextTransformer
from blipcore.model.vit import VisionTransformer


class Blip(nn.Module):
    """The model, without tokenisation, losses and momentum copies (see `blipcore.tasks`)."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTransformer(config.vision)
        self.text = TextTransformer(config.text)
        itc, itm = ("itc" in config.heads), ("itm" in config.heads)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim) if itc else None
        self.text_proj = nn.Linear(config.text.width, config.embed_dim) if itc else None
        self.temp = nn.Parameter(torch.tensor(0.07)) if itc else None
        self.itm_head = nn.Linear(config.text.width, 2) if itm else None
        self.answer_decoder = TextTransformer(config.answer_decoder) if "vqa" in config.heads else None
        self.cls_head = None
        if "nlvr" in config.heads:
            D = config.text.width
            self.cls_head = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 2))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return image_embeds (B, N, W) of pixels (B, 3, S, S), uint8 or normalised."""
        image_embeds, sizes = self.encode_merged(pixels)
        assert sizes is None, "Tokens are merged: use encode_merged, whose sizes the text side needs."
        return image_embeds

    def encode_merged(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return image_embeds (B, M, W) and the patches per token (B, M); None if no tokens are merged.

        Pass the sizes on to `text.image_kv` as its mask. Tokens are merged by `prepare_for_inference`.
        """
        encoded = self.visual_encoder(pixels)
        return encoded if isinstance(encoded, tuple) else (encoded, None)

    def image_feat(self, image_embeds: Tensor) -> Tensor:
        """Return unit vectors (B, E) of images in the ITC space, from the class token."""
        assert self.vision_proj is not None
        return F.normalize(self.vision_proj(image_embeds[:, 0]).float(), dim=-1)

    def text_feat(self, hidden: Tensor) -> Tensor:
        """Return unit vectors (R, E) of texts in the ITC space, from position 0 of unimodal states (R, L, D)."""
        assert self.text_proj is not None
        return F.normalize(self.text_proj(hidden[:, 0]).float(), dim=-1)

    def itm_logits(self, fused: Tensor) -> Tensor:
        """Return logits (R, 2) of image-grounded states (R, L, D); class 1 is "matched"."""
        assert self.itm_head is not None
        return self.itm_head(fused[:, 0]).float()

    def nlvr_logits(self, fused: Tensor) -> Tensor:
        """Return logits (R, 2) of states (R, L, D) grounded in image pairs; class 1 is "the sentence is true"."""
        assert self.cls_head is not None
        return self.cls_head(fused[:, 0]).float()

    def select_parts(self, *parts: str) -> "Blip":
        """Return a new model of `parts` (see `BlipConfig.select_parts`) with copies of these weights.

        A missing answer decoder (VQA) starts from the text transformer's role "decode", missing twin cross-attentions
        (NLVR2) from the single one. The NLVR classifier and merge layers start random, and so do the answer decoder's
        cross-attention inputs if question states and image tokens differ in width. Raises ValueError for other parts
        that this model lacks.
        """
        model = Blip(self.config.select_parts(*parts))
        source = self.state_dict()
        copied = {}
        for name, tensor in model.state_dict().items():
            origin = name if name in source else _ORIGIN.sub(lambda match: _ORIGINS[match[0]], name)
            if origin in source and source[origin].shape == tensor.shape:
                copied[name] = source[origin]
            elif not _RANDOM_START.search(name):
                has = ", ".join((*self.config.text.roles, *self.config.heads))
                raise ValueError(f"A model with the parts {has} cannot start one with {', '.join(parts)}.")
        model.load_state_dict(copied, strict=False)
        return model


# Parts of parameter names: the origin of a missing part, and parameters that may start random.
_ORIGINS = {"answer_decoder.": "text.", ".cross.first.": ".cross.", ".cross.second.": ".cross."}
_ORIGIN = re.compile("|".join(map(re.escape, _ORIGINS)))
_RANDOM_START = re.compile(r"^cls_head\.|\.cross\.merge\.|^answer_decoder\..*\.(decode_)?cross\.kv\.weight$")
