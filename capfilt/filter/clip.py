"""The scorer for open_clip models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blipcore.device import Dtype, autocast, stack_on
from blipcore.torchvision_shim import import_open_clip
from capfilt.filter.scorer import PAIRS_PER_PASS, group_by_picture, open_clip_fingerprint, parse_open_clip


class OpenClipScorer:
    """Cosine of the features of an open_clip model; TAG in `open_clip:ARCH/TAG` may be the path of a checkpoint."""

    def __init__(self, spec: str, *, column: str = "clip", device: str = "cpu", dtype: Dtype = "auto") -> None:
        arch, tag = parse_open_clip(spec)
        self.name = column
        self.columns: tuple[str, ...] = (column,)
        self.fingerprint = open_clip_fingerprint(spec)
        self.device, self.dtype = device, dtype
        open_clip = import_open_clip()
        if arch not in open_clip.list_models():
            raise ValueError(f"open_clip has no architecture '{arch}'; open_clip.list_models() lists them.")
        tags = open_clip.list_pretrained_tags_by_model(arch)
        if not Path(tag).is_file() and tag not in tags:
            raise ValueError(
                f"'{tag}' is neither a checkpoint file nor a pretrained tag of {arch}; "
                f"its tags are: {', '.join(tags) or 'none'}."
            )
        model, _, self.prepare = open_clip.create_model_and_transforms(arch, pretrained=tag)
        self.model = model.to(device).eval()
        self.tokenizer = open_clip.get_tokenizer(arch)

    @torch.inference_mode()
    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Return the cosines of the texts of B images; `inputs` are (3, S, S) tensors."""
        images = stack_on(inputs, self.device)
        flat_texts = [text for picture_texts in texts for text in picture_texts]  # R texts
        # image of each text (R,)
        image_index = torch.tensor(
            [b for b, picture_texts in enumerate(texts) for _ in picture_texts], dtype=torch.long
        )
        cosine = torch.zeros(len(flat_texts))
        with autocast(self.device, self.dtype):
            image_feat = F.normalize(self.model.encode_image(images).float(), dim=-1)  # (B, E)
            for start in range(0, len(flat_texts), PAIRS_PER_PASS):
                pairs = slice(start, start + PAIRS_PER_PASS)
                tokens = self.tokenizer(flat_texts[pairs]).to(self.device)
                text_feat = F.normalize(self.model.encode_text(tokens).float(), dim=-1)  # (r, E)
                cosine[pairs] = (text_feat * image_feat[image_index[pairs].to(self.device)]).sum(-1).cpu()
        return {self.name: group_by_picture(cosine.tolist(), texts)}
