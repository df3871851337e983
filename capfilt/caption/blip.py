"""BLIP's image-grounded decoder as a captioner, the paper's: one caption a picture from the nucleus p = 0.9."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blipcore.checkpoints.load import load_model
from blipcore.data.transforms import eval_transform
from blipcore.device import Backend, Dtype, stack_on
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate, prompt_that_fits
from blipcore.inference.prepare import for_inference, keep_memory
from blipcore.io.hub import fingerprint


class BlipCaptioner:
    """BLIP's decoder; `GenerateConfig` says how it speaks, and its noise is a function of (seed, key, index) alone."""

    def __init__(
        self,
        model: str,
        settings: GenerateConfig | None = None,
        *,
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "auto",
        backend: Backend = "torch",
    ) -> None:
        self.name = "blip"
        self.fingerprint = fingerprint(model, tokenizer)
        self.settings = settings or GenerateConfig()
        self.device = device
        blip, self.tokenizer = load_model(model, needs=("decode",), tokenizer=tokenizer)
        self.model = for_inference(blip, device, dtype, backend)
        if device == "cpu":
            keep_memory()
        self.prepare = eval_transform(blip.config.vision.image_size)
        prompt_that_fits(blip.text, self.tokenizer, self.settings)  # before the first picture is read

    @torch.inference_mode()
    def caption(self, inputs: Sequence[Tensor], keys: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Captions of (3, S, S) pixel tensors, `settings.num_captions` for each."""
        pixels = stack_on(inputs, self.device)
        said = generate(self.model, self.model.encode_image(pixels), self.tokenizer, self.settings, keys)
        rows = [(self.tokenizer.decode(ids), p) for ids, p in zip(said.ids, said.logprob, strict=True)]
        n = self.settings.num_captions
        return [rows[b * n : (b + 1) * n] for b in range(len(keys))]
