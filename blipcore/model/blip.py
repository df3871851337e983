"""BLIP: the image encoder, the text transformer and the heads over them.

Which roles and heads a model has follows from its task: a pre-training model has all, a captioner only the decoder, a
retrieval model (the filter) the encoder with the ITC and ITM heads. A VQA model has the encoder for the question and a
second body, the answer decoder, that reads the question's states; an NLVR model has the encoder over two images and a
classifier.
"""

import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.med import TextConfig, TextTransformer
from blipcore.model.vit import VisionConfig, VisionTransformer, require_numbers, require_sizes

HEADS = ("itc", "itm", "vqa", "nlvr")


@dataclass
class BlipConfig:
    """Sizes and parts of a BLIP model."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 256  # width of the joint ITC space
    heads: tuple[str, ...] = ("itc", "itm")

    def __post_init__(self) -> None:
        require_sizes(self, "embed_dim")
        require_numbers(self.text, 1, "dropout", "eps")
        self.heads = tuple(self.heads)
        if set(self.heads) - set(HEADS):
            raise ValueError(f"heads are {HEADS}, not {self.heads}")
        if self.heads and "encode" not in self.text.roles:
            raise ValueError("all heads need the text role 'encode'")
        if ("nlvr" in self.heads) != (self.text.merge_from is not None):
            raise ValueError("text.merge_from is for the head 'nlvr', which needs it")
        if self.text.merge_from is not None:
            require_numbers(self.text, self.text.depth, "merge_from")
        if self.text.encoder_width != self.vision.width:
            raise ValueError(f"text.encoder_width {self.text.encoder_width} must be vision.width {self.vision.width}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BlipConfig":
        """The inverse of `to_dict`; raises ValueError on a key that is not a field."""
        parts = {"vision": VisionConfig, "text": TextConfig}
        known = {f.name for f in fields(cls)}
        for section, part in [("", cls), *parts.items()]:
            names = {f.name for f in fields(part)}
            given = set(values.get(section, {}) if section else values)
            if given - names:
                raise ValueError(f"unknown model config keys {sorted(given - names)}; known are {sorted(names)}")
        built = {name: parts[name](**value) if name in parts else value for name, value in values.items()}
        return cls(**{name: built[name] for name in known & built.keys()})

    def only(self, *needs: str) -> "BlipConfig":
        """The same sizes with only the roles and heads in `needs` (of encode, decode, itc, itm, vqa, nlvr)."""
        roles = tuple(role for role in ("encode", "decode") if role in needs)
        heads = tuple(head for head in HEADS if head in needs)
        merge_from = None
        if "nlvr" in heads:  # the upper half merges: layers 6 to 11 of BERT-base, as in the official model
            merge_from = self.text.depth // 2 if self.text.merge_from is None else self.text.merge_from
        return replace(self, text=replace(self.text, roles=roles, merge_from=merge_from), heads=heads)

    @property
    def answer_text(self) -> TextConfig:
        """Sizes of VQA's answer decoder: those of the text body, with question states to attend to."""
        return replace(self.text, roles=("decode",), encoder_width=self.text.width)


PRESETS = {
    # For laptops and the demo: 48-pixel pictures, a vocabulary trained on the captions, a step takes milliseconds.
    "tiny": BlipConfig(
        VisionConfig(image_size=48, patch_size=8, width=128, depth=3, heads=4),
        TextConfig(
            vocab_size=512, width=128, depth=3, heads=4, hidden=512, max_positions=64, encoder_width=128, dropout=0.0
        ),
        embed_dim=64,
    ),
    "base": BlipConfig(),
    # drop_path is 0.1 wherever ViT-L appears in the official code, also in pre-training and in the momentum copy.
    "large": BlipConfig(
        VisionConfig(width=1024, depth=24, heads=16, drop_path=0.1),
        TextConfig(encoder_width=1024),
    ),
}


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
