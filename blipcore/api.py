"""BLIP in Python, from pictures and strings to captions, answers, scores and features.

    import blipcore

    blip = blipcore.load("model_base_retrieval_coco.pth")  # or a blipcore folder, a Hugging Face BLIP folder or hub id
    print(blip.match("picture.jpg", "a dog on a couch"))

Pictures are PIL images, paths, bytes, numpy arrays or torch tensors, one of them or any iterable of them; texts are a
string or any iterable of strings. Results are lists, also of one picture. Methods may be called from several threads.

If the checkpoint lacks a part, methods that need it raise ValueError with a suitable kind of checkpoint. For training
and for whole data sets use the `capfilt` commands.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blipcore.checkpoints.load import load_model, require_parts
from blipcore.checkpoints.numerics import Numerics
from blipcore.data.transforms import EvalTransform
from blipcore.device import Dtype, pick_device
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate, generate_texts
from blipcore.inference.pictures import Pictures, iterate_pictures
from blipcore.inference.prepare import prepare_for_inference
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.explain import grad_cam
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import TEXT_TOKENS, Tokenizer, clean_caption
from blipcore.tasks.vqa import WRITE_ANSWERS, VQAConfig, question_kv, rank_answers, tokenize_questions

T = TypeVar("T")

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
    numerics: Numerics = "official",
) -> "Pipeline":
    """Load a checkpoint of any kind (see `load_model`) onto `device`; `dtype` "auto" is bf16 if it is fast there.

    Raises FileNotFoundError or ValueError for an unsuitable checkpoint, and ValueError for a missing device.
    """
    device = pick_device(str(device))
    model, loaded_tokenizer = load_model(path_or_id, tokenizer=tokenizer, image_size=image_size, numerics=numerics)
    return Pipeline(str(path_or_id), prepare_for_inference(model, device, dtype), loaded_tokenizer, device)


@dataclass
class Pipeline:
    """A model with its tokenizer and image transform. Pictures are processed in batches of `batch_size`."""

    name: str
    model: Blip
    tokenizer: Tokenizer
    device: str = "cpu"
    batch_size: int = 32

    def caption(self, images: Pictures, config: GenerateConfig = BEST_CAPTION) -> list[str]:
        """Return the first caption of each image (see `captions`): the best of a beam search."""
        return [captions[0][0] for captions in self.captions(images, config)]

    @torch.inference_mode()
    def captions(self, images: Pictures, config: GenerateConfig = BEST_CAPTION) -> list[list[tuple[str, float]]]:
        """Return `config.num_captions` captions of each image, each with its log-probability under the model.

        The captions of a beam search are sorted, best first. Nucleus captions depend on the position of the image.
        """
        self._require("decode")
        captions: list[tuple[str, float]] = []
        for start, image_embeds in self._image_embeds(images):
            keys = [str(start + row) for row in range(len(image_embeds))]
            texts = generate(self.model, image_embeds, self.tokenizer, config, keys)
            captions += zip(map(self.tokenizer.decode, texts.ids), texts.logprob, strict=True)
        return [list(batch) for batch in _split(captions, config.num_captions)]

    @torch.inference_mode()
    def match(self, images: Pictures, texts: str | Iterable[str], first: Literal["enc", "cls"] = "enc") -> list[float]:
        """Return the ITM probability that text r describes image r.

        `first` is the first token; "cls" gives the numbers of the official demo.
        """
        self._require("itm")
        if first not in ("enc", "cls"):
            raise ValueError(f"first is 'enc' or 'cls', not {first!r}.")
        scores: list[float] = []
        for image_embeds, batch in self._pairs(images, texts):
            ids, mask = self._tokenize(batch, first)
            fused = self.model.text.fuse(ids, mask, self.model.text.image_kv(image_embeds))
            scores += self.model.itm_logits(fused).softmax(1)[:, 1].tolist()
        return scores

    def similarity(self, images: Pictures, texts: str | Iterable[str]) -> Tensor:
        """Return the ITC cosines (B, T) of every image with every text."""
        return self.encode_images(images) @ self.encode_texts(texts).T

    @torch.inference_mode()
    def encode_images(self, images: Pictures) -> Tensor:
        """Return unit vectors (B, E) of images in the ITC space."""
        self._require("itc")
        feats = [torch.empty(0, self.model.config.embed_dim)]
        feats += [self.model.image_feat(image_embeds).cpu() for _, image_embeds in self._image_embeds(images)]
        return torch.cat(feats)

    @torch.inference_mode()
    def encode_texts(self, texts: str | Iterable[str]) -> Tensor:
        """Return unit vectors (T, E) of texts in the ITC space."""
        self._require("itc")
        feats = [torch.empty(0, self.model.config.embed_dim)]
        for batch in _split(_to_texts(texts), self.batch_size):
            hidden = self.model.text.encode(*self._tokenize(batch, "cls"))
            feats.append(self.model.text_feat(hidden).cpu())
        return torch.cat(feats)

    @torch.inference_mode()
    def answer(
        self, images: Pictures, questions: str | Iterable[str], candidates: str | Iterable[str] = ()
    ) -> list[str]:
        """Return the answer to question r about image r: generated, or the best of `candidates` as on VQA v2."""
        self._require("vqa")
        answers, choices = [], _to_texts(candidates)
        for image_embeds, batch in self._pairs(images, questions):
            ids, mask = tokenize_questions(self.tokenizer, batch, VQAConfig())
            kv = question_kv(self.model, image_embeds, ids.to(self.device), mask.to(self.device))
            answers += self._rank_answers(kv, choices) if choices else self._generate_answers(kv)
        return answers

    def heat_maps(self, images: Pictures, texts: str | Iterable[str], layer: int | None = None) -> Tensor:
        """Return heat maps (R, L, side, side), per token of text r, of where it matches image r (`grad_cam`)."""
        self._require("itm")
        side = self.model.config.vision.image_size // self.model.config.vision.patch_size
        maps = [torch.empty(0, 0, side, side)]
        for pixels, batch in self._pairs_of_pixels(images, texts):
            cleaned = [clean_caption(text) for text in batch]
            maps.append(grad_cam(self.model, self.tokenizer, pixels, cleaned, layer))
        longest = max(part.shape[1] for part in maps)
        return torch.cat([F.pad(part, (0, 0, 0, 0, 0, longest - part.shape[1])).to(maps[-1]) for part in maps])

    def pixels(self, images: Pictures) -> Tensor:
        """Return the image encoder's input (B, 3, S, S): upright, on white, resized."""
        return self._stack(list(iterate_pictures(images)))

    def _stack(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels (B, 3, S, S) of upright RGB images."""
        side = self.model.config.vision.image_size
        transform = EvalTransform(side)
        rows = [transform(image) for image in images]
        return torch.stack(rows).to(self.device) if rows else torch.empty(0, 3, side, side, dtype=torch.uint8)

    def _image_embeds(self, images: Pictures) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of the first image, image tokens) for each batch; only one batch is in memory."""
        for number, batch in enumerate(_split(iterate_pictures(images), self.batch_size)):
            yield number * self.batch_size, self.model.encode_image(self._stack(batch))

    def _pairs(self, images: Pictures, texts: str | Iterable[str]) -> Iterator[tuple[Tensor, list[str]]]:
        """Yield image tokens and their texts for each batch."""
        for pixels, batch in self._pairs_of_pixels(images, texts):
            yield self.model.encode_image(pixels), batch

    def _pairs_of_pixels(self, images: Pictures, texts: str | Iterable[str]) -> Iterator[tuple[Tensor, list[str]]]:
        pictures, texts = list(iterate_pictures(images)), _to_texts(texts)
        if len(pictures) != len(texts):
            raise ValueError(f"{len(pictures)} images and {len(texts)} texts: pass one text per image.")
        for batch in _split(zip(pictures, texts, strict=True), self.batch_size):
            yield self._stack([picture for picture, _ in batch]), [text for _, text in batch]

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


def _to_texts(texts: str | Iterable[str]) -> list[str]:
    """Return texts as a list; a single string is a list of one. Raises TypeError for what is no string."""
    if not isinstance(texts, (str, Iterable)):
        raise TypeError(f"A text is a string, not a {type(texts).__name__}.")
    items = [texts] if isinstance(texts, str) else list(texts)
    for position, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"Text {position} is a {type(item).__name__}, not a string.")
    return items


def _split(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, fewer in the last one."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
