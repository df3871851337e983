"""The scorer for BLIP's ITM and ITC heads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from blipcore.io.hub import model_fingerprint
from capfilt.filter.scorer import (
    PAIRS_PER_PASS,
    FilterSettings,
    Runtime,
    Scorer,
    group_by_picture,
    picture_of_each_text,
)
from capfilt.filter.vectors import TEXT_VECTOR, vector_columns

if TYPE_CHECKING:
    from torch import Tensor

    from blipcore.model.attention import ImageKV

# On a CPU larger batches are no faster and need more padding.
CPU_PAIRS_PER_PASS = 16


class BlipScorer(Scorer):
    """Probability of BLIP's ITM head and cosine of its ITC features.

    The ITM text starts with [ENC], as in training, retrieval evaluation and LAVIS. `first_token="cls"` reproduces the
    other scores of the official demo class and Hugging Face, which start it with [CLS].
    """

    name = "blip"
    columns = ("itm", "itc")
    uses_backend = True
    packages = ("torch", "tokenizers")

    def __init__(self, path: str, settings: FilterSettings | None = None) -> None:
        self.path, self.options = path, settings or FilterSettings()
        if self.options.first_token not in ("enc", "cls"):
            raise ValueError(f"first_token is 'enc' or 'cls', not {self.options.first_token!r}.")
        self.settings: dict[str, Any] = {"first_token": self.options.first_token}
        if self.options.numerics != "official":
            self.settings["numerics"] = self.options.numerics
        if self.options.merge_tokens:
            self.settings["merge_tokens"] = self.options.merge_tokens
        if self.options.vectors:
            self.name, self.settings["vectors"] = "blip-vectors", True
            self.list_columns = (TEXT_VECTOR.name,)

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.path, self.options.tokenizer)

    def load(self, runtime: Runtime) -> None:
        import torch

        from blipcore.checkpoints.load import load_model
        from blipcore.data.transforms import EvalTransform
        from blipcore.inference.prepare import keep_freed_memory, prepare_for_inference
        from blipcore.model.tokenizer import TEXT_TOKENS

        self.device = runtime.device
        self.pairs_per_pass = CPU_PAIRS_PER_PASS if torch.device(self.device).type == "cpu" else PAIRS_PER_PASS
        blip, self.tokenizer = load_model(
            self.path,
            needs=("itm", "itc", "encode"),
            tokenizer=self.options.tokenizer,
            numerics=self.options.numerics,
        )
        self.model = prepare_for_inference(blip, self.device, runtime.dtype, runtime.backend, self.options.merge_tokens)
        if self.device == "cpu":
            keep_freed_memory()
        self.max_length = min(TEXT_TOKENS, blip.config.text.max_positions)
        self.transform = EvalTransform(blip.config.vision.image_size)

    def prepare(self, image: Image.Image, /) -> Any:
        return self.transform(image)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        from blipcore.model.tokenizer import clean_caption

        cleaned = [clean_caption(text, sys.maxsize) for text in texts]
        _, mask = self.tokenizer(cleaned, self.max_length + 1)  # (R, L)
        is_long = (mask.sum(1) > self.max_length).tolist()
        return [long or clean_caption(text) != text for text, long in zip(cleaned, is_long, strict=True)]

    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
        """Return ITM probabilities and ITC cosines of the texts of B images; `inputs` are (3, S, S) tensors.

        With the setting `vectors`, also their vectors, see `to_cells`.
        """
        import torch

        from blipcore.device import stack_on
        from blipcore.model.tokenizer import clean_caption

        flat_texts = [clean_caption(text) for picture_texts in texts for text in picture_texts]  # R texts
        ids, mask = self.tokenizer(flat_texts or [""], self.max_length)  # (R, L)
        lengths = mask.sum(1)
        image_index = torch.tensor(picture_of_each_text(texts), dtype=torch.long)  # (R,)
        itm, itc = torch.zeros(len(flat_texts)), torch.zeros(len(flat_texts))
        with torch.inference_mode():
            image_embeds, sizes = self.model.encode_merged(stack_on(inputs, self.device))  # (B, N, W)
            image_feat = self.model.image_feat(image_embeds)  # (B, E)
            kv = self.model.text.image_kv(image_embeds, sizes, text_tokens=int(lengths.sum()) / len(inputs))
            # Sorted by length, to save padding.
            text_feat = torch.zeros(len(flat_texts), image_feat.shape[-1])  # (R, E)
            for rows in lengths.argsort(stable=True).split(self.pairs_per_pass) if flat_texts else ():
                images_of_rows = image_index[rows].to(self.device)
                row_ids, row_mask = (part[rows, : lengths[rows[-1]]].to(self.device) for part in (ids, mask))
                itm[rows] = self._itm(row_ids, row_mask, kv.select(images_of_rows))
                text_feat_of_rows = self._text_feat(row_ids, row_mask)
                itc[rows] = (text_feat_of_rows * image_feat[images_of_rows]).sum(-1).float().cpu()
                if self.options.vectors:
                    text_feat[rows] = text_feat_of_rows.float().cpu()
        scores = {"itm": group_by_picture(itm.tolist(), texts), "itc": group_by_picture(itc.tolist(), texts)}
        return scores | (vector_columns(image_feat, text_feat, texts) if self.options.vectors else {})

    def _itm(self, ids: Tensor, mask: Tensor, kv: ImageKV) -> Tensor:
        if self.options.first_token == "enc":
            ids = ids.clone()
            ids[:, 0] = self.tokenizer.enc
        logits = self.model.itm_logits(self.model.text.fuse(ids, mask, kv))  # (R, 2)
        return logits.float().softmax(-1)[:, 1].cpu()

    def _text_feat(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.text_feat(self.model.text.encode(ids, mask))  # (R, E)
