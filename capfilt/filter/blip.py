"""BLIP's ITM and ITC heads as a scorer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blipcore.checkpoints.load import load_model
from blipcore.data.transforms import eval_transform
from blipcore.device import Backend, Dtype, stack_on
from blipcore.inference.prepare import for_inference, keep_memory
from blipcore.io.hub import fingerprint
from blipcore.model.attention import ImageKV
from blipcore.model.tokenizer import clean_caption
from capfilt.filter.scorer import BLIP_COLUMNS, ROWS, FirstToken, by_picture

TEXT_TOKENS = 35  # official ITM text budget, first token and [SEP] included
CPU_ROWS = 16  # pairs a forward pass on a CPU, which is no faster with more: fewer differ less in length


class BlipScorer:
    """BLIP's ITM and ITC heads.

    The ITM text starts with [ENC], as in training, retrieval evaluation and LAVIS; the official demo class and Hugging
    Face leave [CLS] there, which `first_token="cls"` reproduces. The two give different numbers.
    """

    columns = BLIP_COLUMNS

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
        self.rows = CPU_ROWS if torch.device(device).type == "cpu" else ROWS
        blip, self.tokenizer = load_model(model, needs=("itm", "itc", "encode"), tokenizer=tokenizer)
        self.model = for_inference(blip, device, dtype, backend)
        if device == "cpu":
            keep_memory()
        self.max_length = min(TEXT_TOKENS, blip.config.text.max_positions)
        self.prepare = eval_transform(blip.config.vision.image_size)

    @torch.inference_mode()
    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """ITM probability and ITC cosine of the texts of (3, S, S) pixel tensors."""
        pixels = stack_on(inputs, self.device)
        flat = [clean_caption(text) for of_picture in texts for text in of_picture]  # R rows
        ids, mask = self.tokenizer(flat, self.max_length)  # (R, L)
        lengths = mask.sum(1)
        picture = torch.tensor([b for b, of_picture in enumerate(texts) for _ in of_picture], dtype=torch.long)
        itm, itc = torch.zeros(len(flat)), torch.zeros(len(flat))
        image_embeds = self.model.encode_image(pixels)  # (B, N, W)
        image_feat = self.model.image_feat(image_embeds)  # (B, E)
        kv = self.model.text.image_kv(image_embeds, text_tokens=int(lengths.sum()) / len(inputs))
        # texts of like length share a forward pass, so that little of it is padding
        for rows in lengths.argsort(stable=True).split(self.rows):
            of = picture[rows].to(self.device)
            some = [part[rows, : lengths[rows[-1]]].to(self.device) for part in (ids, mask)]
            itm[rows] = self._itm(*some, kv.select(of))
            itc[rows] = (self._text_feat(*some) * image_feat[of]).sum(-1).float().cpu()
        return {"itm": by_picture(itm.tolist(), texts), "itc": by_picture(itc.tolist(), texts)}

    def _itm(self, ids: Tensor, mask: Tensor, kv: ImageKV) -> Tensor:
        if self.first_token == "enc":
            ids = ids.clone()
            ids[:, 0] = self.tokenizer.enc
        logits = self.model.itm_logits(self.model.text.fuse(ids, mask, kv))  # (R, 2)
        return logits.float().softmax(-1)[:, 1].cpu()

    def _text_feat(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.text_feat(self.model.text.encode(ids, mask))  # (R, E)
