"""`hf:MODEL`: captions from any image-text-to-text model of transformers, given by folder or hub id.

A batch shares a forward pass, padded on the left. The model's chat template, if any, formats the prompt. Sampling noise
is BLIP's: one number per step, a function of (seed, key, caption index). A caption depends only on its picture and key,
up to rounding in another batch size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blipcore.device import Dtype, resolve_dtype
from blipcore.generate.nucleus import draw_tokens
from blipcore.generate.sample import sample_noise
from blipcore.io.hub import download_from_hub
from blipcore.io.messages import one_line
from blipcore.torchvision_shim import heal_torchvision
from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig, parse_answer

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
CODE = "*.py"


class HfCaptioner:
    """A model of transformers with its processor, in `dtype` throughout."""

    def __init__(
        self,
        model: str,
        settings: ChatConfig,
        *,
        trust_remote_code: bool = False,
        device: str = "cpu",
        dtype: Dtype = "auto",
    ) -> None:
        heal_torchvision()
        from transformers import AutoModelForImageTextToText, AutoProcessor, logging

        logging.disable_progress_bar()
        self.name, self.fingerprint = model, hf_fingerprint(model, trust_remote_code)
        self.settings, self.device = settings, device
        folder = str(_folder(model, trust_remote_code))
        self.dtype = torch.bfloat16 if resolve_dtype(device, dtype) == "bf16" else torch.float32
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
            loaded = AutoModelForImageTextToText.from_pretrained(
                folder, trust_remote_code=trust_remote_code, dtype=self.dtype
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise ValueError(
                f"transformers cannot load {model} as an image-text-to-text model ({one_line(error)})."
            ) from None
        if device.startswith("cuda:"):
            # the code of some models moves tensors to "cuda", without a number
            torch.cuda.set_device(device)
        # transformers wraps `to` without its types
        self.model = loaded.to(device).eval()  # type: ignore[arg-type]
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.generation_config.pad_token_id is None:
            self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.prompt = self._format_prompt()

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the image unchanged: processors take all images of a batch together."""
        return image

    @torch.inference_mode()
    def caption(self, inputs: Sequence[Image.Image], keys: Sequence[str]) -> list[list[Caption]]:
        """Return `settings.num_captions` captions for each RGB image."""
        n = self.settings.num_captions
        images = [[image] for image in inputs]
        batch = self.processor(text=[self.prompt] * len(images), images=images, padding=True, return_tensors="pt")
        batch = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.items()
        }
        chooser = TokenChooser(self.settings, keys, self._end_tokens())
        # The chooser leaves one token per row, so the model's own sampling settings have no effect.
        self.model.generate(
            **batch,
            logits_processor=[chooser],
            max_new_tokens=self.settings.max_new_tokens,
            do_sample=True,
            num_return_sequences=n,
            num_beams=1,
        )
        texts = self.tokenizer.batch_decode(chooser.token_ids(), skip_special_tokens=True)
        answers = zip(texts, chooser.done.tolist(), chooser.logprob.tolist(), strict=True)
        rows = [parse_answer(text, done, logprob) for text, done, logprob in answers]
        return [rows[b * n : (b + 1) * n] for b in range(len(keys))]

    def _format_prompt(self) -> str:
        """Return the prompt in the model's chat format."""
        if not getattr(self.processor, "chat_template", None):
            return self.settings.prompt
        content = [{"type": "image"}, {"type": "text", "text": self.settings.prompt}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.settings.system}]}]
        messages = [*(system if self.settings.system else []), {"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            # BERT's tokenizer ends a text with the second of these
            candidates = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
            ends = next((token for token in candidates if token is not None), [])
        return set(ends if isinstance(ends, list) else [ends])


class TokenChooser:
    """A logits processor that chooses the next token of each row and masks all others."""

    def __init__(self, settings: ChatConfig, keys: Sequence[str], end_tokens: set[int]) -> None:
        rows = [(key, index) for key in keys for index in range(settings.num_captions)]
        noise = [sample_noise(settings.seed, key, index, settings.max_new_tokens) for key, index in rows]
        self.settings, self.end_tokens = settings, torch.tensor(sorted(end_tokens))
        self.noise = torch.from_numpy(np.stack(noise)) if settings.mode == "nucleus" else None  # (R, steps)
        self.done = torch.zeros(len(rows), dtype=torch.bool)
        # of the chosen tokens, with the end token
        self.logprob = torch.zeros(len(rows), dtype=torch.float64)
        # (R,) per step; -1 in finished rows
        self.tokens: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores` (R, V) with all but the chosen token of each row at minus infinity."""
        scores = scores.float()
        token = scores.argmax(1) if self.noise is None else self._draw(scores, self.noise[:, len(self.tokens)])
        logprob = scores.log_softmax(1).gather(1, token[:, None])[:, 0].cpu().double()
        self.logprob += logprob.masked_fill(self.done, 0.0)
        self.tokens.append(token.cpu().masked_fill(self.done, -1))
        self.done |= torch.isin(token.cpu(), self.end_tokens)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

    def token_ids(self) -> list[list[int]]:
        """Return the chosen token ids of each row, with the end token."""
        rows = torch.stack(self.tokens, 1).tolist() if self.tokens else [[] for _ in self.done]
        return [[token for token in row if token >= 0] for row in rows]

    def _draw(self, scores: Tensor, noise: Tensor) -> Tensor:
        """Draw a token per row (R,) from the nucleus of softmax(scores / temperature)."""
        probs, ids = (scores / self.settings.temperature).softmax(1).sort(1, descending=True)
        return draw_tokens(probs, ids, noise, self.settings.top_p, scores.shape[1])


def hf_fingerprint(model: str, trust_remote_code: bool = False) -> str:
    """Return the commit of a hub repository, or 16 hex digits of a folder's files; load no model."""
    folder = _folder(model, trust_remote_code)
    # the hub's cache stores each commit as snapshots/<commit>
    if folder.parent.name == "snapshots":
        return f"hf:{model}@{folder.name[:16]}"
    digest = hashlib.sha256()
    for path in sorted(path for pattern in (*FILES, CODE) for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _folder(model: str, trust_remote_code: bool) -> Path:
    path = Path(model)
    if not path.exists():
        return download_from_hub(model, (*FILES, CODE) if trust_remote_code else FILES)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is not a model folder: it has no config.json.")
    return path
