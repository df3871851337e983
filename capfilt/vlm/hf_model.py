"""A vision-language model of transformers, loaded and checked: the model of `hf:` captioners and judges."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from blipcore.device import Dtype, resolve_dtype
from blipcore.torchvision_shim import import_transformers
from capfilt.vlm.hf_check import batches_are_equal, is_unaffected_by, probe_images, score_probe_images
from capfilt.vlm.hf_files import hf_fingerprint
from capfilt.vlm.hf_inputs import InputMaker, check_positions, end_tokens, max_positions, prompt_length, text_decoder
from capfilt.vlm.hf_load import check_uninitialized, load_hf

# Upper bound on the tokens of a picture, for models with so many positions that prompts need not be counted.
PICTURE_TOKENS = 20_000


class HfModel:
    """A model with its processor and a prompt, in `dtype` throughout, checked on made pictures."""

    def __init__(
        self,
        model: str,
        prompt: str,
        *,
        system: str = "",
        max_new_tokens: int,
        trust_remote_code: bool = False,
        device: str = "cpu",
        dtype: Dtype = "auto",
    ) -> None:
        """Load and check the model; ValueError or FileNotFoundError says why it cannot answer the prompt."""
        self.name, self.fingerprint, self.device = model, hf_fingerprint(model, trust_remote_code), device
        self.dtype = torch.bfloat16 if resolve_dtype(device, dtype) == "bf16" else torch.float32
        self.model, self.processor, uninitialized = load_hf(
            model, trust_remote_code=trust_remote_code, device=device, dtype=self.dtype
        )
        try:
            self.inputs = InputMaker(self.model, self.processor, prompt, system)
        except Exception as error:
            raise ValueError(f"{model} cannot caption: {error}.") from None
        self.prompt, self.tokenizer = self.inputs.prompt, self.inputs.tokenizer
        self.ends = end_tokens(self.model, self.tokenizer)
        if not self.ends:
            raise ValueError(
                f"{model} has no end token, so its captions would never end; add eos_token_id to its "
                "generation_config.json."
            )
        self.first_token, self.banned, self.banned_first = self._set_generation()
        self.takes_batches = True
        self._check(uninitialized, max_new_tokens)

    @property
    def special_tokens(self) -> list[str]:
        """Spellings that stand for a picture, an end and the like; longest first."""
        named = [getattr(self.processor, name, None) for name in ("image_token", "boi_token", "eoi_token")]
        own = self.tokenizer.all_special_tokens
        return sorted({str(token) for token in (*own, *named) if token}, key=lambda token: (-len(token), token))

    def fits(self, images: Sequence[Image.Image], prompts: Sequence[str], max_new_tokens: int) -> bool:
        """Return whether formatted prompts and their answers are no longer than the model's positions."""
        positions = max_positions(self.model)
        # A prompt has at most one token per byte, and a picture fewer than PICTURE_TOKENS: counting is not needed.
        if positions is None or max(len(prompt.encode()) for prompt in prompts) + PICTURE_TOKENS < positions:
            return True
        return prompt_length(self.model, self.inputs.make(images, prompts)) + max_new_tokens - 1 <= positions

    def generate(
        self,
        images: Sequence[Image.Image],
        processor: Any,
        max_new_tokens: int,
        n: int = 1,
        prompts: Sequence[str] = (),
    ) -> None:
        """Run the model `n` times per image; `processor` sees the scores and leaves one token per row.

        `prompts` are formatted, one per image; by default every image has the model's prompt.
        """
        batch = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in self.inputs.make(images, prompts).items()
        }
        self.model.generate(
            **batch,
            logits_processor=[processor],
            max_new_tokens=max_new_tokens,
            do_sample=True,
            num_return_sequences=n,
            num_beams=1,
        )

    def _set_generation(self) -> tuple[int | None, list[int], list[int]]:
        """Make `generate` pass on the model's own scores.

        Return the first token of its config, the banned tokens, and those that are only banned in the first place.
        Penalties, minimum lengths, forced ends and sampling settings of a model would change captions and
        log-probabilities.
        """
        own = text_decoder(self.model).generation_config
        named = [own, self.model.generation_config]

        def find(name: str) -> Any:
            return next((value for config in named if (value := getattr(config, name, None)) is not None), None)

        pad = find("pad_token_id")
        if pad is None:
            pad = self.tokenizer.pad_token_id
        tokens = {
            "bos_token_id": find("bos_token_id"),
            "decoder_start_token_id": find("decoder_start_token_id"),
            "eos_token_id": sorted(self.ends) or None,
            "pad_token_id": pad if pad is not None else min(self.ends, default=0),
        }
        plain = import_transformers().GenerationConfig(**tokens)
        single = [words[0] for words in find("bad_words_ids") or [] if len(words) == 1]
        banned = [token for token in (*(find("suppress_tokens") or []), *single) if token not in self.ends]
        first, banned_first = find("forced_bos_token_id"), find("begin_suppress_tokens") or []
        for module in self.model.modules():
            if hasattr(module, "generation_config"):
                module.generation_config = plain
        return first, banned, banned_first

    @torch.inference_mode()
    def _check(self, uninitialized: list[str], max_new_tokens: int) -> None:
        """Raise ValueError for a model that sees no pictures; choose whether it takes batches."""
        scores = score_probe_images(self.name, self.generate, self.inputs.make)
        check_positions(self.name, self.model, self.inputs.make(probe_images()), max_new_tokens)
        if uninitialized and not is_unaffected_by(uninitialized, self.model, scores, self.generate):
            check_uninitialized(self.name, uninitialized)
        self.takes_batches = batches_are_equal(scores, self.generate, self.dtype)
        if not self.takes_batches:
            print(
                f"{self.name} gives other answers in a batch than alone: its pictures are read one at a time.",
                file=sys.stderr,
                flush=True,
            )
