"""`hf:MODEL`: captions from any image-text-to-text model of transformers, given by folder or hub id.

A batch shares a forward pass, padded on the left. The model's chat template, if any, formats the prompt. Sampling noise
is BLIP's: one number per step, a function of (seed, key, caption index). A caption depends only on its picture and key,
up to rounding in another batch size. Of the model's own generation_config, only the special tokens count, and the
tokens that it must not write; log-probabilities are the model's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blipcore.device import Dtype, resolve_dtype
from blipcore.generate.nucleus import draw_tokens
from blipcore.generate.sample import sample_noise
from blipcore.torchvision_shim import import_transformers
from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig, parse_answer
from capfilt.caption.hf_check import batches_are_equal, is_unaffected_by, probe_images, score_probe_images
from capfilt.caption.hf_files import hf_fingerprint, hf_prompt
from capfilt.caption.hf_inputs import InputMaker, check_positions, end_tokens, text_decoder
from capfilt.caption.hf_load import check_uninitialized, load_hf


class HfCaptioner:
    """A model of transformers with its processor, in `dtype` throughout, checked on made pictures."""

    def __init__(
        self,
        model: str,
        settings: ChatConfig,
        *,
        trust_remote_code: bool = False,
        device: str = "cpu",
        dtype: Dtype = "auto",
    ) -> None:
        """Load and check the model; ValueError or FileNotFoundError says why it cannot caption."""
        self.name, self.fingerprint = model, hf_fingerprint(model, trust_remote_code)
        self.settings, self.device = settings, device
        self.dtype = torch.bfloat16 if resolve_dtype(device, dtype) == "bf16" else torch.float32
        self.model, self.processor, uninitialized = load_hf(
            model, trust_remote_code=trust_remote_code, device=device, dtype=self.dtype
        )
        prompt = hf_prompt(model, settings.prompt, trust_remote_code)
        try:
            self.inputs = InputMaker(self.model, self.processor, settings, prompt)
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
        self._check(uninitialized)

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the image unchanged: processors take all images of a batch together."""
        return image

    @torch.inference_mode()
    def caption(self, inputs: Sequence[Image.Image], keys: Sequence[str]) -> list[list[Caption]]:
        """Return `settings.num_captions` captions for each RGB image."""
        if not self.takes_batches and len(inputs) > 1:
            pairs = zip(inputs, keys, strict=True)
            return [captions for image, key in pairs for captions in self.caption([image], [key])]
        n = self.settings.num_captions
        chooser = TokenChooser(
            self.settings, keys, self.ends,
            first_token=self.first_token, banned=self.banned, banned_first=self.banned_first,
        )  # fmt: skip
        self._generate(inputs, chooser, self.settings.max_new_tokens, n)
        texts = self.inputs.decode(chooser.token_ids())
        answers = zip(texts, chooser.done.tolist(), chooser.logprob.tolist(), strict=True)
        rows = [parse_answer(text, done, logprob) for text, done, logprob in answers]
        return [rows[b * n : (b + 1) * n] for b in range(len(keys))]

    def _generate(self, images: Sequence[Image.Image], processor: Any, max_new_tokens: int, n: int = 1) -> None:
        """Run the model; `processor` sees the scores and leaves one token per row."""
        batch = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in self.inputs.make(images).items()
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
    def _check(self, uninitialized: list[str]) -> None:
        """Raise ValueError for a model that cannot caption; choose whether it takes batches."""
        scores = score_probe_images(self.name, self._generate, self.inputs.make)
        check_positions(self.name, self.model, self.inputs.make(probe_images()), self.settings.max_new_tokens)
        if uninitialized and not is_unaffected_by(uninitialized, self.model, scores, self._generate):
            check_uninitialized(self.name, uninitialized)
        self.takes_batches = batches_are_equal(scores, self._generate, self.dtype)
        if not self.takes_batches:
            print(
                f"{self.name} gives other captions in a batch than alone: its pictures are captioned one at a time.",
                file=sys.stderr,
                flush=True,
            )


class TokenChooser:
    """A logits processor that chooses the next token of each row and masks all others."""

    def __init__(
        self,
        settings: ChatConfig,
        keys: Sequence[str],
        end_tokens: set[int],
        *,
        first_token: int | None = None,
        banned: Sequence[int] = (),
        banned_first: Sequence[int] = (),
    ) -> None:
        """Choose `first_token`, if given, then none of `banned_first`, and never one of `banned`."""
        rows = [(key, index) for key in keys for index in range(settings.num_captions)]
        noise = [sample_noise(settings.seed, key, index, settings.max_new_tokens) for key, index in rows]
        self.settings, self.end_tokens = settings, torch.tensor(sorted(end_tokens))
        self.first_token, self.banned, self.banned_first = first_token, list(banned), list(banned_first)
        self.noise = torch.from_numpy(np.stack(noise)) if settings.mode == "nucleus" else None  # (R, steps)
        self.done = torch.zeros(len(rows), dtype=torch.bool)
        # of the chosen tokens, with the end token
        self.logprob = torch.zeros(len(rows), dtype=torch.float64)
        # (R,) per step; -1 in finished rows
        self.tokens: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores` (R, V) with all but the chosen token of each row at minus infinity."""
        scores = scores.float()
        token = self._choose(scores)
        logprob = scores.log_softmax(1).gather(1, token[:, None])[:, 0].cpu().double()
        self.logprob += logprob.masked_fill(self.done, 0.0)
        self.tokens.append(token.cpu().masked_fill(self.done, -1))
        self.done |= torch.isin(token.cpu(), self.end_tokens)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

    def token_ids(self) -> list[list[int]]:
        """Return the chosen token ids of each row, with the end token."""
        rows = torch.stack(self.tokens, 1).tolist() if self.tokens else [[] for _ in self.done]
        return [[token for token in row if token >= 0] for row in rows]

    def _choose(self, scores: Tensor) -> Tensor:
        """Return a token per row (R,)."""
        step = len(self.tokens)
        if step == 0 and self.first_token is not None:
            return torch.full_like(scores[:, 0], self.first_token, dtype=torch.long)
        is_first = step == (self.first_token is not None)
        if banned := self.banned + self.banned_first * is_first:
            scores = scores.index_fill(1, torch.tensor(banned, device=scores.device), -torch.inf)
        return scores.argmax(1) if self.noise is None else self._draw(scores, self.noise[:, step])

    def _draw(self, scores: Tensor, noise: Tensor) -> Tensor:
        """Draw a token per row (R,) from the nucleus of softmax(scores / temperature)."""
        probs, ids = (scores / self.settings.temperature).softmax(1).sort(1, descending=True)
        return draw_tokens(probs, ids, noise, self.settings.top_p, scores.shape[1])
