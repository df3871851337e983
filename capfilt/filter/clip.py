"""The scorer for open_clip models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from capfilt.filter.scorer import PAIRS_PER_PASS, Runtime, Scorer, group_by_picture, picture_of_each_text

if TYPE_CHECKING:
    from torch import Tensor


class OpenClipScorer(Scorer):
    """Cosine of the features of an open_clip model; TAG in `open_clip:ARCH/TAG` may be the path of a checkpoint."""

    name = "clip"
    columns = ("clip",)
    packages = ("torch", "open_clip_torch")

    def __init__(self, spec: str) -> None:
        self.arch, self.tag = parse_open_clip(spec)

    @cached_property
    def fingerprint(self) -> str:
        """ARCH/TAG, or ARCH/DIGEST for a local checkpoint."""
        if not Path(self.tag).is_file():
            return f"{self.arch}/{self.tag}"
        with open(self.tag, "rb") as file:
            return f"{self.arch}/{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"

    def load(self, runtime: Runtime) -> None:
        from blipcore.torchvision_shim import import_open_clip

        self.device, self.dtype = runtime.device, runtime.dtype
        open_clip = import_open_clip()
        if self.arch not in open_clip.list_models():
            raise ValueError(f"open_clip has no architecture '{self.arch}'; open_clip.list_models() lists them.")
        tags = open_clip.list_pretrained_tags_by_model(self.arch)
        if not Path(self.tag).is_file() and self.tag not in tags:
            raise ValueError(
                f"'{self.tag}' is neither a checkpoint file nor a pretrained tag of {self.arch}; "
                f"its tags are: {', '.join(tags) or 'none'}."
            )
        model, _, self.transform = open_clip.create_model_and_transforms(self.arch, pretrained=self.tag)
        self.model = model.to(self.device).eval()
        self.tokenizer = open_clip.get_tokenizer(self.arch)

    def prepare(self, image: Image.Image, /) -> Any:
        return self.transform(image)

    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Return the cosines of the texts of B images; `inputs` are (3, S, S) tensors."""
        import torch
        import torch.nn.functional as F

        from blipcore.device import autocast, stack_on

        flat_texts = [text for picture_texts in texts for text in picture_texts]  # R texts
        image_index = torch.tensor(picture_of_each_text(texts), dtype=torch.long)  # (R,)
        cosine = torch.zeros(len(flat_texts))
        with torch.inference_mode(), autocast(self.device, self.dtype):
            images = stack_on(inputs, self.device)
            image_feat = F.normalize(self.model.encode_image(images).float(), dim=-1)  # (B, E)
            for start in range(0, len(flat_texts), PAIRS_PER_PASS):
                pairs = slice(start, start + PAIRS_PER_PASS)
                tokens = self.tokenizer(flat_texts[pairs]).to(self.device)
                text_feat = F.normalize(self.model.encode_text(tokens).float(), dim=-1)  # (r, E)
                cosine[pairs] = (text_feat * image_feat[image_index[pairs].to(self.device)]).sum(-1).cpu()
        return {"clip": group_by_picture(cosine.tolist(), texts)}


def parse_open_clip(spec: str) -> tuple[str, str]:
    """Parse `open_clip:ARCH/TAG` into architecture and tag."""
    kind, _, name = spec.partition(":")
    arch, _, tag = name.partition("/")
    if kind != "open_clip" or not (arch and tag):
        raise ValueError(f"'{spec}' is not a CLIP model; write open_clip:ARCH/TAG, such as open_clip:ViT-B-32/openai.")
    return arch, tag
