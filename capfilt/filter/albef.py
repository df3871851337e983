"""The scorer for ALBEF's ITM and ITC heads: files of pre-training and of retrieval."""

from __future__ import annotations

import re
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

# Text lengths of its retrieval evaluation: words, and tokens with [CLS] and [SEP].
MAX_WORDS = MAX_TOKENS = 30


class AlbefScorer(Scorer):
    """Probability of ALBEF's ITM head and cosine of its ITC features; texts are cleaned as in its dataset/utils.py."""

    name = "albef"
    columns = ("itm", "itc")
    uses_backend = True
    packages = ("torch", "tokenizers")

    def __init__(self, path: str, settings: FilterSettings | None = None) -> None:
        self.path, self.options = path, settings or FilterSettings()
        if self.options.merge_tokens:
            raise ValueError(f"{path} is an ALBEF filter; merge_tokens is for BLIP filters.")
        if self.options.vectors:
            self.name, self.settings = "albef-vectors", {"vectors": True}
            self.list_columns = (TEXT_VECTOR.name,)

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.path, self.options.tokenizer)

    def load(self, runtime: Runtime) -> None:
        from blipcore.checkpoints.albef import load_albef
        from blipcore.data.transforms import EvalTransform
        from blipcore.inference.prepare import prepare_for_inference

        self.device = runtime.device
        model, self.tokenizer = load_albef(self.path, self.options.tokenizer)
        self.model = prepare_for_inference(model, self.device, runtime.dtype, runtime.backend)
        self.max_length = min(MAX_TOKENS, model.config.text.max_positions)
        self.transform = EvalTransform(model.config.vision.image_size)

    def prepare(self, image: Image.Image, /) -> Any:
        return self.transform(image)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        cleaned = [clean_albef_caption(text, sys.maxsize) for text in texts]
        _, mask = self.tokenizer(cleaned, self.max_length + 1)  # (R, L)
        is_long = (mask.sum(1) > self.max_length).tolist()
        return [long or clean_albef_caption(text) != text for text, long in zip(cleaned, is_long, strict=True)]

    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
        """Return ITM probabilities and ITC cosines of the texts of B images; `inputs` are (3, S, S) tensors.

        With the setting `vectors`, also their vectors, see `to_cells`.
        """
        import torch

        from blipcore.device import stack_on

        flat_texts = [clean_albef_caption(text) for picture_texts in texts for text in picture_texts]  # R texts
        image_index = torch.tensor(picture_of_each_text(texts), dtype=torch.long, device=self.device)  # (R,)
        itm, itc = torch.zeros(len(flat_texts)), torch.zeros(len(flat_texts))
        with torch.inference_mode():
            image_embeds = self.model.encode_image(stack_on(inputs, self.device))  # (B, N, W)
            image_feat = self.model.image_feat(image_embeds)  # (B, E)
            layers = self.model.text.image_kv(image_embeds)
            text_feat = torch.zeros(len(flat_texts), image_feat.shape[-1])  # (R, E)
            for start in range(0, len(flat_texts), PAIRS_PER_PASS):
                rows = slice(start, start + PAIRS_PER_PASS)
                ids, mask = (part.to(self.device) for part in self.tokenizer(flat_texts[rows], self.max_length))
                states = self.model.text.encode(ids, mask)
                images = image_index[rows]
                fused = self.model.text.fuse(states, mask, [kv.index_select(1, images) for kv in layers])
                itm[rows] = self.model.itm_logits(fused).float().softmax(-1)[:, 1].cpu()
                text_feat_of_rows = self.model.text_feat(states)
                text_feat[rows] = text_feat_of_rows.float().cpu()
                itc[rows] = (text_feat_of_rows * image_feat[images]).sum(-1).float().cpu()
        scores = {"itm": group_by_picture(itm.tolist(), texts), "itc": group_by_picture(itc.tolist(), texts)}
        return scores | (vector_columns(image_feat, text_feat, texts) if self.options.vectors else {})


def clean_albef_caption(text: str, max_words: int = MAX_WORDS) -> str:
    """Lower-case a caption, delete , . ' ! ? " ( ) * # : ; ~, split words at - and /, keep the first `max_words`."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower()).replace("-", " ").replace("/", " ")
    text = re.sub(r"\s{2,}", " ", text.replace("<person>", "person")).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
