"""A picture and its texts in, one number a text and column out: the `Scorer` protocol and its implementations.

    itm    probability that picture and text match, softmax of BLIP's ITM head; the paper keeps a text at 0.5 or more
    itc    cosine of BLIP's image and text features, -1 to 1; not a probability
    clip   cosine of an open_clip model's features, -1 to 1; of further ones clip2, clip3, ...

Higher is better in every column. A picture is encoded once for all of its texts. `capfilt filter` knows the protocol
alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blipcore.data.transforms import eval_transform
from blipcore.model.convert import fingerprint, load_model
from blipcore.model.inference import Backend, for_inference, resolve_backend
from blipcore.model.tokenizer import clean_caption
from blipcore.model.torchvision_shim import import_open_clip
from blipcore.precision import Dtype, autocast, resolve_dtype, to_device

__all__ = [
    "Backend",
    "BlipScorer",
    "Dtype",
    "FirstToken",
    "OpenClipScorer",
    "Scorer",
    "clean_caption",
    "clip_columns",
    "fingerprint",
    "open_clip_fingerprint",
    "resolve_backend",
    "resolve_dtype",
]

FirstToken = Literal["enc", "cls"]
TEXT_TOKENS = 35  # official ITM text budget, first token and [SEP] included
ROWS = 128  # (picture, text) pairs a forward pass: their copies of the pictures' keys and values take the memory


class Scorer(Protocol):
    """Judges texts of pictures; the score of a pair must not depend on the other pairs of the call."""

    name: str
    fingerprint: str  # changes when the scores would
    columns: tuple[str, ...]

    def prepare(self, image: Image.Image) -> Any:
        """What `score` needs of an RGB picture; called from reading threads, ahead of the model."""

    def score(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """column -> for each prepared picture the scores of its texts, texts as they came from the web."""


class BlipScorer:
    """BLIP's ITM and ITC heads.

    The ITM text starts with [ENC], as in training, retrieval evaluation and LAVIS; the official demo class and Hugging
    Face leave [CLS] there, which `first_token="cls"` reproduces. The two give different numbers.
    """

    columns = ("itm", "itc")

    def __init__(
        self,
        model: str,
        *,
        first_token: FirstToken = "enc",
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "auto",
        backend: Backend = "torch",
    ) -> None:
        if first_token not in ("enc", "cls"):
            raise ValueError(f"first_token is 'enc' or 'cls', not {first_token!r}.")
        self.name = "blip"
        self.fingerprint = fingerprint(model, tokenizer)
        self.first_token: FirstToken = first_token
        self.device = device
        blip, self.tokenizer = load_model(model, needs=("itm", "itc", "encode"), tokenizer=tokenizer)
        self.model = for_inference(blip, device, dtype, backend)
        self.max_length = min(TEXT_TOKENS, blip.config.text.max_positions)
        self.prepare = eval_transform(blip.config.vision.image_size)

    @torch.inference_mode()
    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """ITM probability and ITC cosine of the texts of (3, S, S) pixel tensors."""
        pixels = to_device(torch.stack(list(inputs)), self.device)
        flat = [clean_caption(text) for of_picture in texts for text in of_picture]  # R rows
        picture = torch.tensor([b for b, of_picture in enumerate(texts) for _ in of_picture], dtype=torch.long)
        itm, itc = torch.zeros(len(flat)), torch.zeros(len(flat))
        image_embeds = self.model.encode_image(pixels)  # (B, N, W)
        image_feat = self.model.image_feat(image_embeds)  # (B, E)
        tokens = sum(len(text.split(" ")) + 4 for text in flat) / len(inputs)  # of a picture's texts, roughly
        kv = self.model.text.image_kv(image_embeds, text_tokens=tokens)
        # texts of like length share a forward pass, so that little of it is padding
        order = sorted(range(len(flat)), key=lambda row: (len(flat[row].split(" ")), row))
        for start in range(0, len(flat), ROWS):
            rows = torch.tensor(order[start : start + ROWS])
            of = picture[rows].to(self.device)
            some = [flat[row] for row in rows.tolist()]
            itm[rows] = self._itm(some, kv.select(of))
            itc[rows] = (self._text_feat(some) * image_feat[of]).sum(-1).float().cpu()
        return {"itm": _by_picture(itm, texts), "itc": _by_picture(itc, texts)}

    def _itm(self, texts: list[str], kv: Any) -> Tensor:
        ids, mask = self._tokens(texts, self.first_token)
        logits = self.model.itm_logits(self.model.text.fuse(ids, mask, kv))  # (R, 2)
        return logits.float().softmax(-1)[:, 1].cpu()

    def _text_feat(self, texts: list[str]) -> Tensor:
        return self.model.text_feat(self.model.text.encode(*self._tokens(texts, "cls")))  # (R, E)

    def _tokens(self, texts: list[str], first: FirstToken) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokenizer(texts, self.max_length, first)
        return ids.to(self.device), mask.to(self.device)


class OpenClipScorer:
    """Cosine of any open_clip model; `spec` is `open_clip:ARCH/TAG`, TAG a pretrained tag or a checkpoint's path."""

    def __init__(self, spec: str, *, column: str = "clip", device: str = "cpu", dtype: Dtype = "auto") -> None:
        arch, tag = _parse_open_clip(spec)
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
        pixels = to_device(torch.stack(list(inputs)), self.device)
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
        return {self.name: _by_picture(clip, texts)}


def _by_picture(scores: Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """(R,) scores of all rows -> the scores of each picture's texts."""
    return [part.tolist() for part in scores.split([len(of_picture) for of_picture in texts])]


def clip_columns(number: int) -> list[str]:
    """Names of the columns of so many open_clip models."""
    return [f"clip{place or ''}" for place in (0, *range(2, number + 1))][:number]


def open_clip_fingerprint(spec: str) -> str:
    """Architecture and tag, or architecture and digest of a local checkpoint; loads no model."""
    arch, tag = _parse_open_clip(spec)
    if not Path(tag).is_file():
        return f"{arch}/{tag}"
    with open(tag, "rb") as file:
        return f"{arch}/{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def _parse_open_clip(spec: str) -> tuple[str, str]:
    kind, _, rest = spec.partition(":")
    arch, _, tag = rest.partition("/")
    if kind != "open_clip" or not (arch and tag):
        raise ValueError(f"'{spec}' is not a CLIP model; write open_clip:ARCH/TAG, such as open_clip:ViT-B-32/openai.")
    return arch, tag
