"""`hf:MODEL`: captions from any image-text-to-text model of transformers, a folder or a hub id. The only file of it.

A batch shares a forward pass, padded on the left; the prompt goes through the model's chat template where it has one.
Sampling draws its noise as BLIP's does, from a generator keyed by (seed, key, caption index), one number a step, so
that a caption is a function of its picture and key as far as rounding in another batch lets it.
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
from blipcore.io.hub import download
from blipcore.torchvision_shim import repair_torchvision
from capfilt.caption.chat import Caption, ChatConfig, parse_answer

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
        settings.require_no_beams()
        if settings.extra:
            raise ValueError("chat.extra goes into requests to a server; an hf: captioner makes none.")
        repair_torchvision()
        from transformers import AutoModelForImageTextToText, AutoProcessor, logging

        logging.disable_progress_bar()
        self.name, self.fingerprint = model, hf_fingerprint(model, trust_remote_code)
        self.settings, self.device = settings, device
        folder = str(_folder(model, trust_remote_code))
        precision = torch.bfloat16 if resolve_dtype(device, dtype) == "bf16" else torch.float32
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
            loaded = AutoModelForImageTextToText.from_pretrained(
                folder, trust_remote_code=trust_remote_code, dtype=precision
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"{model} is no image-text-to-text model that transformers can load ({why}).") from None
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # what a model's own code means by "cuda"
        self.precision, self.model = precision, loaded.to(device).eval()
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.generation_config.pad_token_id is None:
            self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.prompt = self._prompt()

    def prepare(self, image: Image.Image) -> Image.Image:
        """The picture itself: processors want all of a batch together."""
        return image

    @torch.inference_mode()
    def caption(self, inputs: Sequence[Image.Image], keys: Sequence[str]) -> list[list[Caption]]:
        """Captions of RGB pictures, `settings.num_captions` for each."""
        n = self.settings.num_captions
        images = [[image] for image in inputs]
        batch = self.processor(text=[self.prompt] * len(images), images=images, padding=True, return_tensors="pt")
        batch = {
            name: tensor.to(self.device, self.precision if tensor.is_floating_point() else None)
            for name, tensor in batch.items()
        }
        speaker = _Speaker(self.settings, keys, self._ends())
        # The processor leaves one token to choose from, so the sampling settings that come with the model do nothing.
        self.model.generate(
            **batch,
            logits_processor=[speaker],
            max_new_tokens=self.settings.max_new_tokens,
            do_sample=True,
            num_return_sequences=n,
            num_beams=1,
        )
        texts = self.tokenizer.batch_decode(speaker.said(), skip_special_tokens=True)
        rows = [parse_answer(*row) for row in zip(texts, speaker.done.tolist(), speaker.logprob.tolist(), strict=True)]
        return [rows[b * n : (b + 1) * n] for b in range(len(keys))]

    def _prompt(self) -> str:
        """The prompt as the model was taught to read it."""
        if not getattr(self.processor, "chat_template", None):
            return self.settings.prompt
        content = [{"type": "image"}, {"type": "text", "text": self.settings.prompt}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.settings.system}]}]
        messages = [*(system if self.settings.system else []), {"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        usual = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)  # BERT's ends with the second
        ends = ends if ends is not None else next((end for end in usual if end is not None), [])
        return set(ends if isinstance(ends, list) else [ends])


class _Speaker:
    """Chooses the tokens inside `generate`: a logits processor that leaves one for each row, and remembers it."""

    def __init__(self, settings: ChatConfig, keys: Sequence[str], ends: set[int]) -> None:
        rows = [(key, index) for key in keys for index in range(settings.num_captions)]
        self.settings, self.ends = settings, torch.tensor(sorted(ends))
        steps = settings.max_new_tokens
        noise = [sample_noise(settings.seed, key, index, steps) for key, index in rows]
        self.noise = torch.from_numpy(np.stack(noise)) if settings.mode == "nucleus" else None
        self.done = torch.zeros(len(rows), dtype=torch.bool)
        self.logprob = torch.zeros(len(rows), dtype=torch.float64)  # of the tokens, the end included
        self.tokens: list[Tensor] = []  # (R,) a step; -1 where the row had ended

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()  # (R, V)
        token = scores.argmax(1) if self.noise is None else self._draw(scores, self.noise[:, len(self.tokens)])
        gained = scores.log_softmax(1).gather(1, token[:, None])[:, 0].cpu().double()
        self.logprob += gained.masked_fill(self.done, 0.0)
        self.tokens.append(token.cpu().masked_fill(self.done, -1))
        self.done |= torch.isin(token.cpu(), self.ends)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

    def said(self) -> list[list[int]]:
        """Token ids of each row, the end included."""
        rows = torch.stack(self.tokens, 1).tolist() if self.tokens else [[] for _ in self.done]
        return [[token for token in row if token >= 0] for row in rows]

    def _draw(self, scores: Tensor, noise: Tensor) -> Tensor:
        """Draw a token per row (R,) from the nucleus of softmax(scores / temperature)."""
        probs, ids = (scores / self.settings.temperature).softmax(1).sort(1, descending=True)
        return draw_tokens(probs, ids, noise, self.settings.top_p, scores.shape[1])


def hf_fingerprint(model: str, trust_remote_code: bool = False) -> str:
    """16 hex digits of a folder's files, or the commit of a hub repository; loads no model."""
    folder = _folder(model, trust_remote_code)
    if folder.parent.name == "snapshots":  # as the hub's cache lays out a commit
        return f"hf:{model}@{folder.name[:16]}"
    digest = hashlib.sha256()
    for path in sorted(path for pattern in (*FILES, CODE) for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _folder(model: str, trust_remote_code: bool) -> Path:
    path = Path(model)
    if not path.exists():
        return download(model, (*FILES, CODE) if trust_remote_code else FILES)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no model folder: it has no config.json.")
    return path
