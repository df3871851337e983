"""Any open_clip model as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blipcore.device import Dtype, autocast, stack_on
from blipcore.torchvision_shim import import_open_clip
from capfilt.filter.scorer import ROWS, by_picture, open_clip_fingerprint, parse_open_clip


class OpenClipScorer:
    """Cosine of any open_clip model; `spec` is `open_clip:ARCH/TAG`, TAG a pretrained tag or a checkpoint's path."""

    def __init__(self, spec: str, *, column: str = "clip", device: str = "cpu", dtype: Dtype = "auto") -> None:
        arch, tag = parse_open_clip(spec)
        self.name, self.columns = column, (column,)
        self.fingerprint = open_clip_fingerprint(spec)
        self.device, self.dtype = device, dtype
        open_clip = import_open_clip()
        if arch not in open_clip.list_models():
            raise ValueError(f"open_clip knows no architecture '{arch}'; open_clip.list_models() names them.")
        if not Path(tag).is_file() and tag not in open_clip.list_pretrained_tags_by_model(arch):
            known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
            raise ValueError(f"'{tag}' is neither a checkpoint file nor a pretrained tag of {arch} (it has {known}).")
        model, _, self.prepare = open_clip.create_model_and_transforms(arch, pretrained=tag)
        self.model = model.to(device).eval()
        self.tokenizer = open_clip.get_tokenizer(arch)

    @torch.inference_mode()
    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Cosine of the texts of (3, S, S) pixel tensors."""
        pixels = stack_on(inputs, self.device)
        flat = [text for of_picture in texts for text in of_picture]  # R rows
        picture = torch.tensor([b for b, of_picture in enumerate(texts) for _ in of_picture], dtype=torch.long)
        clip = torch.zeros(len(flat))
        with autocast(self.device, self.dtype):
            image_feat = F.normalize(self.model.encode_image(pixels).float(), dim=-1)  # (B, E)
            for start in range(0, len(flat), ROWS):
                tokens = self.tokenizer(flat[start : start + ROWS]).to(self.device)
                text_feat = F.normalize(self.model.encode_text(tokens).float(), dim=-1)  # (R, E)
                of = picture[start : start + ROWS].to(self.device)
                clip[start : start + ROWS] = (text_feat * image_feat[of]).sum(-1).cpu()
        return {self.name: by_picture(clip.tolist(), texts)}
