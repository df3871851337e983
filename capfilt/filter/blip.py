"""The scorer for BLIP's ITM and ITC heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blipcore.checkpoints.load import load_model
from blipcore.data.transforms import EvalTransform
from blipcore.device import Backend, Dtype, stack_on
from blipcore.inference.prepare import keep_freed_memory, prepare_for_inference
from blipcore.io.hub import model_fingerprint
from blipcore.model.attention import ImageKV
from blipcore.model.tokenizer import TEXT_TOKENS, clean_caption
from capfilt.filter.scorer import BLIP_COLUMNS, PAIRS_PER_PASS, FirstToken, group_by_picture

# On a CPU larger batches are no faster and need more padding.
CPU_PAIRS_PER_PASS = 16


class BlipScorer:
    """Probability of BLIP's ITM head and cosine of its ITC features.

    The ITM text starts with [ENC], as in training, retrieval evaluation and LAVIS. `first_token="cls"` reproduces the
    other scores of the official demo class and Hugging Face, which start it with [CLS].
    """

    columns: tuple[str, ...] = BLIP_COLUMNS

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
        self.fingerprint = model_fingerprint(model, tokenizer)
        self.first_token: FirstToken = first_token
        self.device = device
        self.pairs_per_pass = CPU_PAIRS_PER_PASS if torch.device(device).type == "cpu" else PAIRS_PER_PASS
        blip, self.tokenizer = load_model(model, needs=("itm", "itc", "encode"), tokenizer=tokenizer)
        self.model = prepare_for_inference(blip, device, dtype, backend)
        if device == "cpu":
            keep_freed_memory()
        self.max_length = min(TEXT_TOKENS, blip.config.text.max_positions)
        self.prepare = EvalTransform(blip.config.vision.image_size)

    @torch.inference_mode()
    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Return ITM probabilities and ITC cosines of the texts of B images; `inputs` are (3, S, S) tensors."""
        images = stack_on(inputs, self.device)
        flat_texts = [clean_caption(text) for picture_texts in texts for text in picture_texts]  # R texts
        ids, mask = self.tokenizer(flat_texts, self.max_length)  # (R, L)
        lengths = mask.sum(1)
        # image of each text (R,)
        image_index = torch.tensor(
            [b for b, picture_texts in enumerate(texts) for _ in picture_texts], dtype=torch.long
        )
        itm, itc = torch.zeros(len(flat_texts)), torch.zeros(len(flat_texts))
        image_embeds = self.model.encode_image(images)  # (B, N, W)
        image_feat = self.model.image_feat(image_embeds)  # (B, E)
        kv = self.model.text.image_kv(image_embeds, text_tokens=int(lengths.sum()) / len(inputs))
        # Sorted by length, to save padding.
        for rows in lengths.argsort(stable=True).split(self.pairs_per_pass):
            images_of_rows = image_index[rows].to(self.device)
            row_ids, row_mask = (part[rows, : lengths[rows[-1]]].to(self.device) for part in (ids, mask))
            itm[rows] = self._itm(row_ids, row_mask, kv.select(images_of_rows))
            itc[rows] = (self._text_feat(row_ids, row_mask) * image_feat[images_of_rows]).sum(-1).float().cpu()
        return {"itm": group_by_picture(itm.tolist(), texts), "itc": group_by_picture(itc.tolist(), texts)}

    def _itm(self, ids: Tensor, mask: Tensor, kv: ImageKV) -> Tensor:
        if self.first_token == "enc":
            ids = ids.clone()
            ids[:, 0] = self.tokenizer.enc
        logits = self.model.itm_logits(self.model.text.fuse(ids, mask, kv))  # (R, 2)
        return logits.float().softmax(-1)[:, 1].cpu()

    def _text_feat(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.text_feat(self.model.text.encode(ids, mask))  # (R, E)
