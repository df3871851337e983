"""BLIP in Python, from PIL images and strings to captions, answers, scores and features.

    from blipcore.api import load

    blip = load("model_base_retrieval_coco.pth")  # or a blipcore folder, a Hugging Face BLIP folder or hub id
    print(blip.match([image], ["a dog on a couch"]))

If the checkpoint lacks a part, methods that need it raise ValueError with a suitable kind of checkpoint. For training
and for whole data sets use the `capfilt` commands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blipcore.checkpoints.load import load_model, require_parts
from blipcore.data.transforms import EvalTransform
from blipcore.device import Dtype, pick_device
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate, generate_texts
from blipcore.inference.prepare import prepare_for_inference
from blipcore.io.images import upright_rgb
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.explain import grad_cam
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import TEXT_TOKENS, Tokenizer, clean_caption
from blipcore.tasks.vqa import WRITE_ANSWERS, VQAConfig, question_kv, rank_answers, tokenize_questions

# The settings with which BLIP is evaluated on COCO captions.
BEST_CAPTION = GenerateConfig(mode="beam", repetition_penalty=1.0)
# Candidate answers scored in full: those with the likeliest first tokens (official).
SHORTLIST = 128


def load(
    path_or_id: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    device: str = "auto",
    dtype: Dtype = "fp32",
) -> "Pipeline":
    """Load a checkpoint of any kind (see `load_model`) onto `device`; `dtype` "auto" is bf16 if it is fast there."""
    model, loaded_tokenizer = load_model(path_or_id, tokenizer=tokenizer, image_size=image_size)
    device = pick_device(device)
    return Pipeline(str(path_or_id), prepare_for_inference(model, device, dtype), loaded_tokenizer, device)


@dataclass
class Pipeline:
    """A model with its tokenizer and image transform. Lists are processed in batches of `batch_size`."""

    name: str
    model: Blip
    tokenizer: Tokenizer
    device: str = "cpu"
    batch_size: int = 32

    @torch.inference_mode()
    def caption(self, images: Sequence[Image.Image], config: GenerateConfig = BEST_CAPTION) -> list[str]:
        """Return the best caption of each image. Nucleus captions depend on its position in the list."""
        self._require("decode")
        captions: list[str] = []
        for start, image_embeds in self._image_embeds(images):
            keys = [str(start + row) for row in range(len(image_embeds))]
            rows = generate(self.model, image_embeds, self.tokenizer, config, keys).ids
            captions += [self.tokenizer.decode(ids) for ids in rows[:: config.num_captions]]
        return captions

    @torch.inference_mode()
    def match(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: Literal["enc", "cls"] = "enc"
    ) -> list[float]:
        """Return the ITM probability that text r describes image r.

        `first` is the first token; "cls" gives the numbers of the official demo.
        """
        self._require("itm")
        self._require_same_length(images, texts)
        scores: list[float] = []
        for start, image_embeds in self._image_embeds(images):
            ids, mask = self._tokenize(texts[start : start + len(image_embeds)], first)
            fused = self.model.text.fuse(ids, mask, self.model.text.image_kv(image_embeds))
            scores += self.model.itm_logits(fused).softmax(1)[:, 1].tolist()
        return scores

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return the ITC cosines (B, T) of every image with every text."""
        return self.encode_images(images) @ self.encode_texts(texts).T

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors (B, E) of images in the ITC space."""
        self._require("itc")
        feats = [torch.empty(0, self.model.config.embed_dim)]
        feats += [self.model.image_feat(image_embeds).cpu() for _, image_embeds in self._image_embeds(images)]
        return torch.cat(feats)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (T, E) of texts in the ITC space."""
        self._require("itc")
        feats = [torch.empty(0, self.model.config.embed_dim)]
        for start in range(0, len(texts), self.batch_size):
            hidden = self.model.text.encode(*self._tokenize(texts[start : start + self.batch_size], "cls"))
            feats.append(self.model.text_feat(hidden).cpu())
        return torch.cat(feats)

    @torch.inference_mode()
    def answer(
        self, images: Sequence[Image.Image], questions: Sequence[str], candidates: Sequence[str] = ()
    ) -> list[str]:
        """Return the answer to question r about image r: generated, or the best of `candidates` as on VQA v2."""
        self._require("vqa")
        self._require_same_length(images, questions)
        answers: list[str] = []
        for start, image_embeds in self._image_embeds(images):
            batch = questions[start : start + len(image_embeds)]
            ids, mask = tokenize_questions(self.tokenizer, batch, VQAConfig())
            kv = question_kv(self.model, image_embeds, ids.to(self.device), mask.to(self.device))
            answers += self._rank_answers(kv, candidates) if candidates else self._generate_answers(kv)
        return answers

    def heat_maps(self, images: Sequence[Image.Image], texts: Sequence[str], layer: int | None = None) -> Tensor:
        """Return heat maps (R, L, side, side), per token of text r, of where it matches image r (`grad_cam`)."""
        self._require("itm")
        self._require_same_length(images, texts)
        maps, cleaned = [], [clean_caption(text) for text in texts]
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            maps.append(grad_cam(self.model, self.tokenizer, self.pixels(images[batch]), cleaned[batch], layer))
        longest = max(part.shape[1] for part in maps)
        return torch.cat([F.pad(part, (0, 0, 0, 0, 0, longest - part.shape[1])) for part in maps])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the image encoder's input (B, 3, S, S): upright, on white, resized."""
        transform = EvalTransform(self.model.config.vision.image_size)
        return torch.stack([transform(upright_rgb(image)) for image in images]).to(self.device)

    def _image_embeds(self, images: Sequence[Image.Image]) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of the first image, image tokens) for each batch."""
        for start in range(0, len(images), self.batch_size):
            yield start, self.model.encode_image(self.pixels(images[start : start + self.batch_size]))

    def _tokenize(self, texts: Sequence[str], first: Literal["enc", "cls"]) -> tuple[Tensor, Tensor]:
        longest = min(TEXT_TOKENS, self.model.config.text.max_positions)
        ids, mask = self.tokenizer([clean_caption(text) for text in texts], longest, first)
        return ids.to(self.device), mask.to(self.device)

    def _generate_answers(self, kv: ImageKV) -> list[str]:
        keys = [""] * len(kv)  # a beam search draws no noise
        answers = generate_texts(self._answer_decoder(), kv, self.tokenizer, WRITE_ANSWERS, keys)
        return [self.tokenizer.decode(ids) for ids in answers.ids]

    def _rank_answers(self, kv: ImageKV, candidates: Sequence[str]) -> list[str]:
        longest = self.model.config.text.max_positions
        ids, mask = (x.to(self.device) for x in self.tokenizer(candidates, longest, "dec"))
        best = rank_answers(self._answer_decoder(), kv, ids, mask, SHORTLIST)
        return [candidates[index] for index in best.tolist()]

    def _answer_decoder(self) -> TextTransformer:
        assert self.model.answer_decoder is not None
        return self.model.answer_decoder

    def _require(self, part: str) -> None:
        require_parts(self.model.config, self.name, (part,))

    def _require_same_length(self, images: Sequence[Image.Image], texts: Sequence[str]) -> None:
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts: pass one text per image.")
