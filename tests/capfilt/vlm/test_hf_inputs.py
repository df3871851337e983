"""Captions of `hf:` equal those of transformers' own `generate` with the inputs of each family's model page."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlm import KINDS, save_tiny_vlm

from blipcore.generate.sample import sample_noise
from blipcore.torchvision_shim import import_transformers
from capfilt.caption.chat import ChatConfig
from capfilt.caption.hf import HfCaptioner, TokenChooser
from capfilt.caption.hf_prompt import PROMPTS

STEPS = 12
PROMPT = "describe this image"
SIZES = [(60, 40), (60, 60), (40, 70), (90, 40)]
PAGE = Path(__file__).parents[3] / "examples" / "vlm.md"


def chat(processor: Any, image: Image.Image) -> dict[str, Any]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip


def picture_alone(processor: Any, image: Image.Image) -> dict[str, Any]:
    return processor(images=image, return_tensors="pt")


def with_text(text: str) -> Callable[[Any, Image.Image], dict[str, Any]]:
    def make(processor: Any, image: Image.Image) -> dict[str, Any]:
        return processor(images=image, text=text, return_tensors="pt")

    return make


def paligemma(processor: Any, image: Image.Image) -> dict[str, Any]:
    inputs = processor(images=image, text="<image>caption en", return_tensors="pt")
    del inputs["labels"]
    return inputs


class Family(NamedTuple):
    """A row of the table in examples/vlm.md, and the inputs of the model page."""

    title: str
    example: str
    model_type: str
    page: Callable[[Any, Image.Image], dict[str, Any]]


FAMILIES = {
    "blip": Family("BLIP", "Salesforce/blip-image-captioning-base", "blip", picture_alone),
    "blip2_opt": Family("BLIP-2 with OPT", "Salesforce/blip2-opt-2.7b", "blip-2", picture_alone),
    "blip2_t5": Family("BLIP-2 with T5", "Salesforce/blip2-flan-t5-xl", "blip-2", picture_alone),
    "instructblip": Family("InstructBLIP", "Salesforce/instructblip-flan-t5-xl", "instructblip", with_text(PROMPT)),
    "git": Family("GIT", "microsoft/git-base-coco", "git", picture_alone),
    "vit_gpt2": Family(
        "ViT-GPT2 and other VisionEncoderDecoder",
        "nlpconnect/vit-gpt2-image-captioning",
        "vision-encoder-decoder",
        picture_alone,
    ),
    "pix2struct": Family("Pix2Struct", "google/pix2struct-textcaps-base", "pix2struct", picture_alone),
    "kosmos2": Family("Kosmos-2", "microsoft/kosmos-2-patch14-224", "kosmos-2", with_text("An image of")),
    "florence2": Family("Florence-2", "florence-community/Florence-2-base", "florence2", with_text("<CAPTION>")),
    "llava": Family("LLaVA", "llava-hf/llava-1.5-7b-hf", "llava", chat),
    "llava_next": Family("LLaVA-NeXT", "llava-hf/llava-v1.6-mistral-7b-hf", "llava_next", chat),
    "llava_onevision": Family("LLaVA-OneVision", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision", chat),
    "qwen2_vl": Family("Qwen2-VL", "Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", chat),
    "qwen2_5_vl": Family("Qwen2.5-VL", "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", chat),
    "qwen3_vl": Family("Qwen3-VL", "Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl", chat),
    "idefics3": Family("Idefics3", "HuggingFaceM4/Idefics3-8B-Llama3", "idefics3", chat),
    "smolvlm": Family("SmolVLM", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "smolvlm", chat),
    "paligemma": Family("PaliGemma", "google/paligemma-3b-mix-224", "paligemma", paligemma),
    "gemma3": Family("Gemma 3", "google/gemma-3-4b-it", "gemma3", chat),
    "internvl": Family("InternVL", "OpenGVLab/InternVL3-1B-hf", "internvl", chat),
}
CHEAP = ("blip", "blip2_t5", "git", "vit_gpt2", "qwen2_vl")


@lru_cache(maxsize=1)
def folder_of(kind: str, root: Path) -> Path:
    return save_tiny_vlm(root / kind, kind)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 255, (height, width, 3), np.uint8)) for width, height in SIZES]


class Draw:
    """Draws from the nucleus of transformers' own TopPLogitsWarper with given noise; greedy without noise."""

    def __init__(self, noise: np.ndarray | None) -> None:
        self.noise, self.step = noise, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.noise is None:
            return scores
        warped = import_transformers().TopPLogitsWarper(0.9)(input_ids, scores)
        cdf = warped.double().softmax(-1).cumsum(-1)
        token = int((cdf[0] <= float(self.noise[self.step]) * cdf[0, -1]).sum())
        self.step += 1
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def reference(kind: str, folder: Path, mode: str) -> list[tuple[list[int], float]]:
    """Return token ids and log-probability of each picture, by the model's own `generate`."""
    hf = import_transformers()
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    try:
        processor = hf.AutoProcessor.from_pretrained(folder)
        assert processor.image_processor
    except AttributeError:  # a model without a processor class
        processor = hf.AutoImageProcessor.from_pretrained(folder)
    answers = []
    for number, image in enumerate(pictures()):
        noise = sample_noise(0, str(number), 0, STEPS) if mode == "nucleus" else None
        out = model.generate(
            **FAMILIES[kind].page(processor, image), logits_processor=[Draw(noise)], do_sample=False,
            max_new_tokens=STEPS, no_repeat_ngram_size=0, forced_eos_token_id=None, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
        ids = out.sequences[0, -len(out.logits) :].tolist()
        logprobs = [logits[0].log_softmax(0)[token] for logits, token in zip(out.logits, ids, strict=True)]
        answers.append((ids, float(sum(logprobs))))
    return answers


def captioned(kind: str, folder: Path, mode: str, batch: int) -> list[tuple[list[int], float]]:
    """Return token ids and log-probability of each picture, by the captioner."""
    settings = ChatConfig(mode=mode, max_new_tokens=STEPS)
    if FAMILIES[kind].model_type not in PROMPTS:
        settings.prompt = PROMPT
    captioner = HfCaptioner(str(folder), settings, dtype="fp32")
    assert captioner.takes_batches
    answers = []
    images = pictures()
    for start in range(0, len(images), batch):
        keys = [str(number) for number in range(start, start + batch)]
        chooser = TokenChooser(settings, keys, captioner.ends, first_token=captioner.first_token)
        with torch.inference_mode():
            captioner.generate(images[start : start + batch], chooser, STEPS)
        answers += list(zip(chooser.token_ids(), chooser.logprob.tolist(), strict=True))
        captions = captioner.caption(images[start : start + batch], keys)
        for (caption,), ids in zip(captions, chooser.token_ids(), strict=True):
            text = captioner.tokenizer.decode(ids, skip_special_tokens=True)
            if kind == "kosmos2" and captioner.processor.post_process_generation(text)[0]:
                text = captioner.processor.post_process_generation("<unk> image <unk> " + text)[0]
            text = " ".join(text.split())
            complete = ids[-1] in captioner.ends
            expected = (text or "empty") if complete else f"too_long: {text}"
            assert (caption.text or caption.error.strip()) == expected.strip()
    return answers


def cases() -> list[Any]:
    """Return every combination of family, decoding mode and batch size, most of them marked slow."""
    fast = {(kind, mode, batch) for kind in CHEAP for mode, batch in (("greedy", 1), ("nucleus", 4))}
    every = [(kind, mode, batch) for kind in FAMILIES for mode in ("greedy", "nucleus") for batch in (1, 4)]
    return [case if case in fast else pytest.param(*case, marks=pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("kind", "mode", "batch"), cases())
def test_captions_equal_those_of_generate(kind: str, mode: str, batch: int, root: Path) -> None:
    folder = folder_of(kind, root)
    expected = reference(kind, folder, mode)
    assert len({round(logprob, 3) for _, logprob in expected}) > 1, "pictures do not matter"
    got = captioned(kind, folder, mode, batch)
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    assert [logprob for _, logprob in got] == pytest.approx([logprob for _, logprob in expected], abs=2e-3)


@pytest.mark.parametrize(("kind", "prompt"), [("blip", "a red"), ("git", "a red"), ("git", "a"), ("vit_gpt2", "a red")])
def test_a_caption_begins_with_the_prompt_that_it_continues(kind: str, prompt: str, root: Path) -> None:
    folder = folder_of(kind, root)
    hf = import_transformers()
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    captioner = HfCaptioner(str(folder), ChatConfig(mode="greedy", prompt=prompt, max_new_tokens=STEPS), dtype="fp32")
    tokenizer = captioner.tokenizer
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    for number, image in enumerate(pictures()):
        if kind == "blip":
            inputs = hf.AutoProcessor.from_pretrained(folder)(image, prompt, return_tensors="pt")
        else:
            inputs = {"pixel_values": captioner.processor.image_processor(image, return_tensors="pt")["pixel_values"]}
            start = torch.tensor([[tokenizer.cls_token_id or tokenizer.bos_token_id]])
            inputs["input_ids" if kind == "git" else "decoder_input_ids"] = torch.cat([start, ids], 1)
        out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        ((caption,),) = captioner.caption([image], [str(number)])
        text = (caption.text or caption.error or "").removeprefix("too_long: ")
        expected = tokenizer.decode(out[0], skip_special_tokens=True).strip()
        assert text == (expected if expected != prompt else "empty")


def test_the_page_lists_the_families_of_this_test() -> None:
    assert set(FAMILIES) == set(KINDS)
    rows = ["| family | example | prompt, unless you set one |", "|---|---|---|"]
    for family in FAMILIES.values():
        prompt = PROMPTS.get(family.model_type, ChatConfig.prompt)
        rows.append(f"| {family.title} | `{family.example}` | {f'`{prompt}`' if prompt else 'none'} |")
    table = re.findall(r"(?m)^\|.*\|$", PAGE.read_text(encoding="utf-8"))
    assert table == rows, "\n".join(rows)
