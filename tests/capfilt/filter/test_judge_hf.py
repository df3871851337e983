"""`--judge hf:`: yes and no in the next token's distribution, as transformers itself gives it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_vlm import WORDS, save_tiny_vlm

from capfilt.filter.judge import JudgeConfig
from capfilt.filter.judge_hf import HfJudge
from capfilt.filter.scorer import Runtime

QUESTION = "does this image show {text}"
TEXTS = [["a red dog", "a cat on a tree"], ["a green <image> tree"]]


@pytest.fixture
def save(tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """Save a tiny model whose vocabulary has spellings of yes and no."""

    def run(kind: str = "llava", *words: str) -> Path:
        monkeypatch.setattr("tiny_vlm.WORDS", [*WORDS, "does", "show", *(words or ("Yes", "yes", "No", "yesterday"))])
        return save_tiny_vlm(tmp_path / kind, kind)

    return run


def open_judge(folder: Path, **settings) -> HfJudge:
    judge = HfJudge(JudgeConfig(f"hf:{folder}", question=QUESTION, **settings))
    judge.load(Runtime("cpu", "fp32"))
    return judge


@pytest.mark.parametrize("kind", ["llava", "blip2_t5"])
def test_the_score_is_the_share_of_yes_in_the_models_own_distribution(save, draw, monkeypatch, kind: str) -> None:
    monkeypatch.setattr("capfilt.filter.judge.MIN_MASS", 0.0)  # random models favour neither
    judge = open_judge(save(kind))
    images = [draw(1), draw(2)]
    scores = judge.score(images, TEXTS)
    model, tokenizer, processor = judge.model.model, judge.model.tokenizer, judge.model.processor
    form = "Question: {} Answer:" if kind == "blip2_t5" else "user <image> {} assistant "
    expected = []
    for image, texts in zip(images, TEXTS, strict=True):
        for text in texts:
            prompt = form.format(QUESTION.format(text=" ".join(text.replace("<image>", " ").split())))
            inputs = processor(images=image, text=prompt, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
            shares = out.logits[0][0].float().softmax(-1)
            yes, no = (sum(shares[tokenizer.convert_tokens_to_ids(word)] for word in words)
                       for words in (("Yes", "yes"), ("No",)))  # fmt: skip
            expected.append(float(yes / (yes + no)))
    flat = [score for row in scores["vqa"] for score in row]
    assert flat == pytest.approx(expected, abs=1e-4) and len(set(flat)) == 3
    assert scores["judge_error"] == [[None, None], [None]]


def test_a_text_that_is_too_long_has_an_outcome_and_the_others_a_score(save, draw) -> None:
    judge = open_judge(save())
    config = judge.model.model.config.get_text_config()
    config.max_position_embeddings = 60
    scores = judge.score([draw(1)], [["a dog", "a dog " * 40, "a cat"]])
    (row,), (errors,) = scores["vqa"], scores["judge_error"]
    assert row[1] is None and errors[1].startswith("too_long") and None not in (row[0], row[2])


def test_models_that_answer_no_questions_are_refused(save, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of the family git, which answers no questions"):
        open_judge(save("git"))
    with pytest.raises(ValueError, match="has no token for 'no'"):
        open_judge(save("llava", "yes", "nothing"))
    with pytest.raises(FileNotFoundError):
        open_judge(tmp_path / "nowhere")


def test_an_answer_without_yes_or_no_is_no_score(save, draw, monkeypatch) -> None:
    judge = open_judge(save())
    monkeypatch.setattr("capfilt.filter.judge.MIN_MASS", 0.9)
    scores = judge.score([Image.new("RGB", (40, 40), "red")], [["a dog"]])
    assert scores == {"vqa": [[None]], "judge_error": [["no_answer"]]}
