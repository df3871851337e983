"""`--scorer lm:CAPTIONER`: the probability of any text under a BLIP captioner, with and without its picture.

    lm    log p(text | picture), divided by the length penalty of `confidence` (confidence.py)
    pmi   log p(text | picture) - log p(text), divided by the same: what the picture adds to the text

For a caption of this captioner, `lm` is its `confidence`. log p(text) is the logarithm of the mean probability given
NULL_PICTURES other pictures, the first of the shard set. The estimates are those of VisualGPTScore (Lin et al.,
"Revisiting the Role of Language Priors in Vision-Language Models", 2023). Its factor of log p(text) is learned by
`mix`. A grey picture, noise or the mean picture in place of real ones tells right and wrong web texts apart less
well. PMI is for texts that the captioner has not written: its own long captions have both more PMI and more errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from blipcore.checkpoints.numerics import Numerics
from blipcore.io.hub import model_fingerprint
from capfilt.filter.confidence import normalize_logprobs
from capfilt.filter.scorer import PAIRS_PER_PASS, Runtime, Scorer, group_by_picture, picture_of_each_text
from capfilt.pictures.decode import MAX_PIXELS, DecodeError, decode_picture
from capfilt.shards.shard_set import ShardSet

if TYPE_CHECKING:
    from torch import Tensor

    from blipcore.model.attention import ImageKV

# Each costs one more pass over the texts; more tell web texts apart slightly better.
NULL_PICTURES = 4


class LmScorer(Scorer):
    """Log-probability of texts under the decoder of a BLIP captioner."""

    name = "lm"
    columns = ("lm", "pmi")
    uses_backend = True
    packages = ("torch", "tokenizers")

    def __init__(
        self, path: str, data: str, prompt: str, tokenizer: str | None = None, numerics: Numerics = "official"
    ) -> None:
        """Declare a scorer of the shard set `data`; `prompt` precedes each text, as in finetuning, unscored."""
        self.path, self.data, self.prompt = path, data, prompt
        self.tokenizer_path, self.numerics = tokenizer, numerics
        self.settings = {"prompt": prompt, "null_pictures": NULL_PICTURES}
        if numerics != "official":
            self.settings["numerics"] = numerics

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.path, self.tokenizer_path)

    def load(self, runtime: Runtime) -> None:
        import torch

        from blipcore.checkpoints.load import load_model
        from blipcore.data.transforms import EvalTransform
        from blipcore.device import stack_on
        from blipcore.inference.prepare import prepare_for_inference
        from blipcore.model.tokenizer import TEXT_TOKENS

        self.device = runtime.device
        blip, self.tokenizer = load_model(
            self.path, needs=("decode",), tokenizer=self.tokenizer_path, numerics=self.numerics
        )
        self.model = prepare_for_inference(blip, self.device, runtime.dtype, runtime.backend)
        self.transform = EvalTransform(blip.config.vision.image_size)
        self.first_word = len(self.tokenizer.prompt(self.prompt))
        self.max_length = min(TEXT_TOKENS + self.first_word - 1, blip.config.text.max_positions)
        if self.first_word > self.max_length - 2:
            raise ValueError(f"lm_prompt has {self.first_word - 1} tokens, which leaves no room for a text.")
        with torch.inference_mode():
            pixels = stack_on([self.transform(image) for image in self._null_images()], self.device)
            self.null_kv = self.model.text.image_kv(self.model.encode_image(pixels))

    def prepare(self, image: Image.Image, /) -> Any:
        return self.transform(image)

    def score(self, inputs: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Return `lm` and `pmi` of the texts of B images; `inputs` are (3, S, S) tensors."""
        import torch

        from blipcore.device import stack_on
        from blipcore.model.tokenizer import clean_caption

        flat_texts = [clean_caption(text) for picture_texts in texts for text in picture_texts]  # R texts
        ids, mask = self.tokenizer([self.prompt + text for text in flat_texts], self.max_length, "dec")  # (R, L)
        lengths = mask.sum(1)
        image_index = torch.tensor(picture_of_each_text(texts), dtype=torch.long)  # (R,)
        given, alone = torch.zeros(len(flat_texts)), torch.zeros(len(flat_texts))
        with torch.inference_mode():
            embeds = self.model.encode_image(stack_on(inputs, self.device))  # (B, N, W)
            kv = self.model.text.image_kv(embeds, text_tokens=int(lengths.sum()) / len(inputs))
            # Sorted by length, to save padding.
            for rows in lengths.argsort(stable=True).split(PAIRS_PER_PASS):
                row_ids, row_mask = (part[rows, : lengths[rows[-1]]].to(self.device) for part in (ids, mask))
                given[rows] = self._logprob(row_ids, row_mask, kv.select(image_index[rows].to(self.device)))
                of_null = [
                    self._logprob(row_ids, row_mask, self.null_kv.select(torch.full_like(row_ids[:, 0], index)))
                    for index in range(len(self.null_kv))
                ]
                alone[rows] = torch.stack(of_null).logsumexp(0) - np.log(len(of_null))
        columns = {"lm": given, "pmi": given - alone}
        arrow_texts = pa.array(flat_texts, pa.string())
        return {
            name: group_by_picture(normalize_logprobs(values.double().numpy(), arrow_texts).tolist(), texts)
            for name, values in columns.items()
        }

    def _logprob(self, ids: Tensor, mask: Tensor, kv: ImageKV) -> Tensor:
        """Return the log-probability (R,) of the words after the prompt and the end of the texts `ids` (R, L)."""
        hidden = self.model.text.decode(ids, mask, kv)[:, self.first_word - 1 : -1]
        targets = ids[:, self.first_word :]
        logprob = self.model.text.logits(hidden).float().log_softmax(-1).gather(2, targets[..., None])[..., 0]
        return logprob.masked_fill(mask[:, self.first_word :] == 0, 0.0).sum(1).cpu()

    def _null_images(self) -> list[Image.Image]:
        """Return the first pictures of the shard set that can be decoded. Raises ValueError if there is none."""
        from blipcore.io.samples import read_samples

        shards = ShardSet.open(self.data)
        images: list[Image.Image] = []
        samples = (sample for shard in shards.shards for sample in read_samples(shards.tar(shard)))
        while len(images) < NULL_PICTURES and (sample := next(samples, None)) is not None:
            with suppress(DecodeError):
                images.append(decode_picture(sample.image, shards.max_pixels() or MAX_PIXELS))
        if not images:
            raise ValueError(f"{self.data} has no picture that can be decoded, and pmi needs one; leave lm: out.")
        return images
