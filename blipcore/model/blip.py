"""BLIP: the image encoder, the text transformer and the heads over them.

Which roles and heads a model has follows from its task: a pre-training model has all, a captioner only the decoder, a
retrieval model (the filter) the encoder with the ITC and ITM heads. A VQA model has the encoder for the question and a
second body, the answer decoder, that reads the question's states; an NLVR model has the encoder over two images and a
classifier.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.config import BlipConfig
from blipcore.model.text import TextTransformer
from blipcore.model.vit import VisionTransformer


class Blip(nn.Module):
    """The model alone: no tokenizing, no losses, no momentum copies (those belong to the tasks)."""

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
        self.answer_decoder = TextTransformer(config.answer_text) if "vqa" in config.heads else None
        self.cls_head = None
        if "nlvr" in config.heads:
            D = config.text.width
            self.cls_head = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 2))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) pixels, uint8 or normalised, -> image_embeds (B, N, W)."""
        return self.visual_encoder(pixels)

    def image_feat(self, image_embeds: Tensor) -> Tensor:
        """Unit vectors (B, E) of images in the ITC space, from the class token."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]).float(), dim=-1)

    def text_feat(self, hidden: Tensor) -> Tensor:
        """Unit vectors (B, E) of texts in the ITC space, from position 0 of unimodal states (B, L, D)."""
        return F.normalize(self.text_proj(hidden[:, 0]).float(), dim=-1)

    def itm_logits(self, fused: Tensor) -> Tensor:
        """(R, 2) logits of image-grounded states (R, L, D); class 1 is "matched"."""
        return self.itm_head(fused[:, 0]).float()

    def nlvr_logits(self, fused: Tensor) -> Tensor:
        """(R, 2) logits of states (R, L, D) grounded in image pairs; class 1 is "the sentence is true"."""
        return self.cls_head(fused[:, 0]).float()

    def only(self, *needs: str) -> "Blip":
        """A model of the parts in `needs` (see `BlipConfig.only`) with copies of these weights.

        Where this model lacks VQA's answer decoder, it starts from the text body's role "decode"; where it lacks the
        twin cross-attention, both start from the single one. New are then NLVR's classifier and merge layers, and the
        decoder's cross-attention inputs where the question's states have another width than the image's.
        """
        part = Blip(self.config.only(*needs))
        own = self.state_dict()
        copied = {}
        for name, tensor in part.state_dict().items():
            source = name if name in own else _ORIGIN.sub(lambda match: _ORIGINS[match[0]], name)
            if source in own and own[source].shape == tensor.shape:
                copied[name] = own[source]
            elif not _NEW.search(name):
                raise ValueError(f"a model with {[*self.config.text.roles, *self.config.heads]} cannot start {needs}")
        part.load_state_dict(copied, strict=False)
        return part


# In the names of parameters: what a part that is not there starts from, and what may be new.
_ORIGINS = {"answer_decoder.": "text.", ".cross.first.": ".cross.", ".cross.second.": ".cross."}
_ORIGIN = re.compile("|".join(map(re.escape, _ORIGINS)))
_NEW = re.compile(r"^cls_head\.|\.cross\.merge\.|^answer_decoder\..*\.(decode_)?cross\.kv\.weight$")
