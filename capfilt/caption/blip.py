"""BLIP's image-grounded text decoder as a captioner; by default one caption per picture, from the nucleus p = 0.9."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blipcore.checkpoints.load import load_model
from blipcore.checkpoints.numerics import Numerics
from blipcore.data.transforms import EvalTransform
from blipcore.device import Backend, Dtype, stack_on
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import encode_prompt, generate
from blipcore.inference.prepare import keep_freed_memory, prepare_for_inference
from blipcore.io.hub import model_fingerprint
from capfilt.caption.captioner import Caption


class BlipCaptioner:
    """BLIP's text decoder, with the decoding settings of a `GenerateConfig`.

    Sampling noise is a function of (seed, key, caption index), so a caption depends on neither batch nor worker.
    """

    def __init__(
        self,
        model: str,
        settings: GenerateConfig | None = None,
        *,
        tokenizer: str | None = None,
        numerics: Numerics = "official",
        merge_tokens: int = 0,
        device: str = "cpu",
        dtype: Dtype = "auto",
        backend: Backend = "torch",
    ) -> None:
        self.name = "blip"
        self.fingerprint = model_fingerprint(model, tokenizer)
        self.settings = settings or GenerateConfig()
        self.device = device
        blip, self.tokenizer = load_model(model, needs=("decode",), tokenizer=tokenizer, numerics=numerics)
        self.model = prepare_for_inference(blip, device, dtype, backend, merge_tokens)
        if device == "cpu":
            keep_freed_memory()
        self.prepare = EvalTransform(blip.config.vision.image_size)
        # raises ValueError for a prompt that is too long
        encode_prompt(blip.text, self.tokenizer, self.settings)

    @torch.inference_mode()
    def caption(self, inputs: Sequence[Tensor], keys: Sequence[str]) -> list[list[Caption]]:
        """Return `settings.num_captions` captions for each image tensor (3, S, S)."""
        pixels = stack_on(inputs, self.device)
        image_embeds, sizes = self.model.encode_merged(pixels)
        texts = generate(self.model, image_embeds, self.tokenizer, self.settings, keys, sizes=sizes)
        rows = [
            Caption(self.tokenizer.decode(ids), logprob) for ids, logprob in zip(texts.ids, texts.logprob, strict=True)
        ]
        n = self.settings.num_captions
        return [rows[b * n : (b + 1) * n] for b in range(len(keys))]
