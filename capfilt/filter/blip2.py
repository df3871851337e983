"""The scorer for BLIP-2's first stage: a `Blip2ForImageTextRetrieval` folder or hub id of transformers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from blipcore.io.hub import PROCESSOR_FILES, locate_model, model_fingerprint
from blipcore.io.messages import one_line
from capfilt.filter.scorer import (
    PAIRS_PER_PASS,
    FilterSettings,
    Runtime,
    Scorer,
    group_by_picture,
    picture_of_each_text,
)

if TYPE_CHECKING:
    from torch import Tensor

# Text lengths of LAVIS's processor and model: words, and tokens with [CLS] and [SEP].
MAX_WORDS, MAX_TOKENS = 50, 32


class Blip2Scorer(Scorer):
    """Probability of BLIP-2's ITM head, averaged over its queries, and the largest cosine of a query with the text.

    Pictures go through the folder's image processor. Texts are cleaned and cut as in LAVIS.
    """

    name = "blip2"
    columns = ("itm", "itc")
    packages = ("torch", "transformers")

    def __init__(self, path: str, settings: FilterSettings | None = None) -> None:
        self.path, self.options = path, settings or FilterSettings()
        if self.options.merge_tokens:
            raise ValueError(f"{path} is a BLIP-2 filter; merge_tokens is for BLIP filters.")
        if self.options.vectors:
            raise ValueError(f"{path} has 32 vectors per picture; vectors are stored for BLIP and ALBEF filters.")

    @cached_property
    def fingerprint(self) -> str:
        files = [locate_model(self.path) / name for name in PROCESSOR_FILES]
        processor = b"".join(file.read_bytes() for file in files if file.is_file())
        weights = model_fingerprint(self.path, self.options.tokenizer)
        return hashlib.sha256(weights.encode() + processor).hexdigest()[:16]

    def load(self, runtime: Runtime) -> None:
        import torch

        from blipcore.torchvision_shim import import_transformers

        transformers = import_transformers()
        transformers.logging.disable_progress_bar()
        folder, self.device = str(locate_model(self.path)), runtime.device
        dtype = torch.bfloat16 if runtime.dtype == "bf16" else torch.float32
        try:
            self.processor = transformers.AutoImageProcessor.from_pretrained(folder)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.options.tokenizer or folder)
            model, loading = transformers.Blip2ForImageTextRetrieval.from_pretrained(
                folder, dtype=dtype, output_loading_info=True
            )
        except Exception as error:  # transformers raises errors of many types
            raise ValueError(
                f"transformers cannot load {self.path} as a BLIP-2 filter ({type(error).__name__}: {one_line(error)})."
            ) from error
        problems = [f"{kind} {name}" for kind, names in loading.items() if kind.endswith("_keys") for name in names]
        vocabulary = model.config.qformer_config.vocab_size
        if problems or self.tokenizer.vocab_size > vocabulary:
            problem = problems[0].replace("_keys", "") if problems else "the tokenizer has more tokens than the model"
            raise ValueError(f"{self.path} is no complete BLIP-2 filter: {problem}.")
        self.model = model.to(self.device).eval()
        # Added tokens, such as <image>, have no embedding.
        self.known = lambda ids: ids.where(ids < vocabulary, self.tokenizer.unk_token_id)

    def prepare(self, image: Image.Image, /) -> Any:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        from blipcore.model.tokenizer import clean_caption

        cleaned = [clean_caption(text, sys.maxsize) for text in texts]
        lengths = [len(ids) for ids in self.tokenizer(cleaned, verbose=False)["input_ids"]] if cleaned else []
        is_long = [length > MAX_TOKENS for length in lengths]
        return [long or clean_caption(text, MAX_WORDS) != text for text, long in zip(cleaned, is_long, strict=True)]

    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Return ITM probabilities and ITC cosines of the texts of B images; `inputs` are (3, S, S) tensors."""
        import torch
        import torch.nn.functional as F

        from blipcore.device import stack_on
        from blipcore.model.tokenizer import clean_caption

        model = self.model
        flat_texts = [clean_caption(text, MAX_WORDS) for picture_texts in texts for text in picture_texts]  # R texts
        image_index = torch.tensor(picture_of_each_text(texts), dtype=torch.long, device=self.device)  # (R,)
        itm, itc = torch.zeros(len(flat_texts)), torch.zeros(len(flat_texts))
        with torch.inference_mode():
            pixels = stack_on(inputs, self.device).to(model.vision_model.embeddings.patch_embedding.weight.dtype)
            queries = model.query_tokens  # (1, Q, D)
            image_embeds = model.vision_model(pixel_values=pixels).last_hidden_state.to(queries.dtype)  # (B, N, W)
            states = self._read(queries.expand(len(inputs), -1, -1), image_embeds)
            image_feats = F.normalize(self._project(model.vision_projection, states), dim=-1)  # (B, Q, E)
            for start in range(0, len(flat_texts), PAIRS_PER_PASS):
                rows = slice(start, start + PAIRS_PER_PASS)
                images = image_index[rows]
                cut = {"padding": True, "truncation": True, "max_length": MAX_TOKENS}
                tokens = self.tokenizer(flat_texts[rows], return_tensors="pt", **cut).to(self.device)
                ids, mask = self.known(tokens["input_ids"]), tokens["attention_mask"]
                words = model.qformer(query_embeds=model.embeddings(input_ids=ids), query_length=0, attention_mask=mask)
                text_feat = F.normalize(self._project(model.text_projection, words.last_hidden_state[:, 0]), dim=-1)
                itc[rows] = (image_feats[images] @ text_feat[:, :, None])[..., 0].amax(1).cpu()
                both = model.embeddings(input_ids=ids, query_embeds=queries.expand(len(ids), -1, -1))
                both_mask = F.pad(mask, (queries.shape[1], 0), value=1)
                fused = self._read(both, image_embeds[images], both_mask)
                logits = self._project(model.itm_head, fused[:, : queries.shape[1]]).mean(1)  # (R, 2)
                itm[rows] = logits.softmax(-1)[:, 1].cpu()
        return {"itm": group_by_picture(itm.tolist(), texts), "itc": group_by_picture(itc.tolist(), texts)}

    def _read(self, embeds: Tensor, image_embeds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the Q-Former's states of queries, which read the image, and of the words that may follow."""
        queries = self.model.query_tokens.shape[1]
        return self.model.qformer(
            query_embeds=embeds, attention_mask=mask, encoder_hidden_states=image_embeds, query_length=queries
        ).last_hidden_state

    @staticmethod
    def _project(layer: Any, states: Tensor) -> Tensor:
        return layer(states.to(layer.weight.dtype)).float()
