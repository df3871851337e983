"""`hf:MODEL`: captions from any image-text-to-text model of transformers, given by folder or hub id.

A batch shares a forward pass, padded on the left. The model's chat template, if any, formats the prompt. Sampling noise
is BLIP's: one number per step, a function of (seed, key, caption index). A caption depends only on its picture and key,
up to rounding in another batch size. Of the model's own generation_config, only the special tokens count, and the
tokens that it must not write; log-probabilities are the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blipcore.device import Dtype
from blipcore.generate.nucleus import draw_tokens
from blipcore.generate.sample import sample_noise
from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig, parse_answer
from capfilt.caption.hf_prompt import hf_prompt
from capfilt.vlm.hf_model import HfModel


class HfCaptioner(HfModel):
    """Captions pictures with a model of transformers."""

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
        super().__init__(
            model,
            hf_prompt(model, settings.prompt, trust_remote_code),
            system=settings.system,
            max_new_tokens=settings.max_new_tokens,
            trust_remote_code=trust_remote_code,
            device=device,
            dtype=dtype,
        )
        self.settings = settings

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
        self.generate(inputs, chooser, self.settings.max_new_tokens, n)
        texts = self.inputs.decode(chooser.token_ids())
        answers = zip(texts, chooser.done.tolist(), chooser.logprob.tolist(), strict=True)
        rows = [parse_answer(text, done, logprob) for text, done, logprob in answers]
        return [rows[b * n : (b + 1) * n] for b in range(len(keys))]


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
