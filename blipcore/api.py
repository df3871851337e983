"""BLIP in a few lines of Python: PIL pictures and strings in; captions, answers, scores, features out.

    from blipcore.api import load

    blip = load("model_base_retrieval_coco.pth")  # or a blipcore folder, a Hugging Face BLIP folder or hub id
    print(blip.match([image], ["a dog on a couch"]))

What a checkpoint has no part for is refused with the kind of checkpoint that does. For training and for whole data
sets there are the commands of `capfilt`.
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
from blipcore.data.transforms import eval_transform
from blipcore.device import Dtype, pick_device
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate, generate_from
from blipcore.inference.prepare import for_inference
from blipcore.io.images import upright_rgb
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.explain import grad_cam
from blipcore.model.tokenizer import Tokenizer, clean_caption
from blipcore.tasks.vqa import WRITE_ANSWERS, VQAConfig, question_kv, rank_answers, tokenize_questions

BEST_CAPTION = GenerateConfig(mode="beam", repetition_penalty=1.0)  # as BLIP is evaluated on COCO
SHORTLIST = 128  # candidate answers that are scored in full, those with the likeliest first tokens
TEXT_TOKENS = 35  # official length of a text in retrieval and ITM, first token and [SEP] included


def load(
    path_or_id: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    device: str = "auto",
    dtype: Dtype = "fp32",
) -> "Pipeline":
    """A checkpoint of any kind (see `load_model`), ready on `device`; `dtype` "auto" is bf16 where it is fast."""
    model, words = load_model(path_or_id, tokenizer=tokenizer, image_size=image_size)
    device = pick_device(device)
    return Pipeline(str(path_or_id), for_inference(model, device, dtype), words, device)


@dataclass
class Pipeline:
    """A model with its tokenizer and picture transform; every list is worked through `batch_size` items at a time."""

    name: str
    model: Blip
    tokenizer: Tokenizer
    device: str = "cpu"
    batch_size: int = 32

    @torch.inference_mode()
    def caption(self, images: Sequence[Image.Image], config: GenerateConfig = BEST_CAPTION) -> list[str]:
        """The best caption of each picture; what a nucleus `config` draws depends on its place in the list."""
        self._require("decode")
        said = []
        for start, some in self._image_embeds(images):
            keys = [str(start + row) for row in range(len(some))]
            rows = generate(self.model, some, self.tokenizer, config, keys).ids
            said += [self.tokenizer.decode(ids) for ids in rows[:: config.num_captions]]
        return said

    @torch.inference_mode()
    def match(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: Literal["enc", "cls"] = "enc"
    ) -> list[float]:
        """ITM probability that text r is about picture r; `first` "cls" gives the numbers of the official demo."""
        self._require("itm")
        self._same_number(images, texts)
        scores: list[float] = []
        for start, some in self._image_embeds(images):
            ids, mask = self._tokens(texts[start : start + len(some)], first)
            fused = self.model.text.fuse(ids, mask, self.model.text.image_kv(some))
            scores += self.model.itm_logits(fused).softmax(1)[:, 1].tolist()
        return scores

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """ITC cosines (B, T) of every picture with every text."""
        return self.encode_images(images) @ self.encode_texts(texts).T

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (B, E) of pictures in the space that they share with texts."""
        self._require("itc")
        feats = [torch.empty(0, self.model.config.embed_dim)]
        feats += [self.model.image_feat(some).cpu() for _, some in self._image_embeds(images)]
        return torch.cat(feats)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (T, E) of texts in the space that they share with pictures."""
        self._require("itc")
        feats = [torch.empty(0, self.model.config.embed_dim)]
        for start in range(0, len(texts), self.batch_size):
            hidden = self.model.text.encode(*self._tokens(texts[start : start + self.batch_size], "cls"))
            feats.append(self.model.text_feat(hidden).cpu())
        return torch.cat(feats)

    @torch.inference_mode()
    def answer(
        self, images: Sequence[Image.Image], questions: Sequence[str], candidates: Sequence[str] = ()
    ) -> list[str]:
        """The answer to question r about picture r: written freely, or the best of `candidates` as on VQA v2."""
        self._require("vqa")
        self._same_number(images, questions)
        answers: list[str] = []
        for start, some in self._image_embeds(images):
            asked = tokenize_questions(self.tokenizer, questions[start : start + len(some)], VQAConfig())
            kv = question_kv(self.model, some, *(x.to(self.device) for x in asked))
            answers += self._rank(kv, candidates) if candidates else self._write(kv)
        return answers

    def heat_maps(self, images: Sequence[Image.Image], texts: Sequence[str], layer: int | None = None) -> Tensor:
        """Where each token of text r looks for what makes it match picture r: (R, L, side, side) (see `grad_cam`)."""
        self._require("itm")
        self._same_number(images, texts)
        maps, cleaned = [], [clean_caption(text) for text in texts]
        for start in range(0, len(images), self.batch_size):
            some = slice(start, start + self.batch_size)
            maps.append(grad_cam(self.model, self.tokenizer, self.pixels(images[some]), cleaned[some], layer))
        longest = max(part.shape[1] for part in maps)
        return torch.cat([F.pad(part, (0, 0, 0, 0, 0, longest - part.shape[1])) for part in maps])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, 3, S, S) input of the image encoder: pictures as the commands see them, upright and on white."""
        transform = eval_transform(self.model.config.vision.image_size)
        return torch.stack([transform(upright_rgb(image)) for image in images]).to(self.device)

    def _image_embeds(self, images: Sequence[Image.Image]) -> Iterator[tuple[int, Tensor]]:
        """(place of the first, image tokens) of each batch of pictures."""
        for start in range(0, len(images), self.batch_size):
            yield start, self.model.encode_image(self.pixels(images[start : start + self.batch_size]))

    def _tokens(self, texts: Sequence[str], first: Literal["enc", "cls"]) -> tuple[Tensor, Tensor]:
        longest = min(TEXT_TOKENS, self.model.config.text.max_positions)
        ids, mask = self.tokenizer([clean_caption(text) for text in texts], longest, first)
        return ids.to(self.device), mask.to(self.device)

    def _write(self, kv: ImageKV) -> list[str]:
        keys = [""] * len(kv)  # a beam search draws nothing
        said = generate_from(self.model.answer_decoder, kv, self.tokenizer, WRITE_ANSWERS, keys)
        return [self.tokenizer.decode(ids) for ids in said.ids]

    def _rank(self, kv: ImageKV, candidates: Sequence[str]) -> list[str]:
        longest = self.model.config.text.max_positions
        ids, mask = (x.to(self.device) for x in self.tokenizer(candidates, longest, "dec"))
        best = rank_answers(self.model.answer_decoder, kv, ids, mask, SHORTLIST)
        return [candidates[index] for index in best.tolist()]

    def _require(self, part: str) -> None:
        require_parts(self.model.config, self.name, (part,))

    def _same_number(self, images: Sequence[Image.Image], texts: Sequence[str]) -> None:
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures and {len(texts)} texts: give one text for each picture")
