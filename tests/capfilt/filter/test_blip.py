"""The BLIP scorer: batched scores equal the scores of one pair at a time, computed step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import capfilt.filter.blip
from blipcore.checkpoints.load import load_model
from blipcore.data.transforms import EvalTransform
from blipcore.model.tokenizer import clean_caption
from capfilt.filter.blip import BlipScorer
from capfilt.filter.scorer import FilterSettings, Runtime

TEXTS = [
    ["a red dog", "Two green trees!!", "the cat on the left with a blue square and one round tree on the right"],
    [],
    ["three"],
    ["a red dog", "a red dog"],
]


@torch.no_grad()
def score_pair_by_pair(model: Path, draw, first: str) -> tuple[list[list[float]], list[list[float]]]:
    """Return ITM probability and ITC cosine of one pair at a time, padded to 35 tokens as in the official code."""
    blip, tokenizer = load_model(model)
    prepare = EvalTransform(blip.config.vision.image_size)
    itm, itc = [], []
    for number, texts in enumerate(TEXTS):
        image_embeds = blip.encode_image(prepare(draw(number))[None])
        itm.append([])
        itc.append([])
        for text in texts:
            ids, mask = tokenizer([clean_caption(text)], 35, first, pad_to_max=True)
            fused = blip.text.fuse(ids, mask, blip.text.image_kv(image_embeds))
            itm[-1].append(torch.softmax(blip.itm_logits(fused), -1)[0, 1].item())
            encoded = blip.text.encode(*tokenizer([clean_caption(text)], 35, "cls", pad_to_max=True))
            itc[-1].append((blip.image_feat(image_embeds) @ blip.text_feat(encoded).T).item())
    return itm, itc


def load(model: Path, first: str = "enc", dtype: str = "fp32") -> BlipScorer:
    """Return a loaded scorer."""
    scorer = BlipScorer(str(model), FilterSettings(first_token=first))
    scorer.load(Runtime("cpu", dtype))
    return scorer


def flat(scores: list[list[float]]) -> list[float]:
    return [score for picture_scores in scores for score in picture_scores]


@pytest.mark.parametrize("rows", [2, 128])
@pytest.mark.parametrize("first", ["enc", "cls"])
def test_batched_scores_equal_pair_by_pair_scores(tiny_filter: Path, draw, first: str, rows: int, monkeypatch) -> None:
    monkeypatch.setattr(capfilt.filter.blip, "CPU_PAIRS_PER_PASS", rows)
    scorer = load(tiny_filter, first)
    scores = scorer.score([scorer.prepare(draw(number)) for number in range(4)], TEXTS)
    assert tuple(scores) == scorer.columns == ("itm", "itc")
    for column, expected in zip(("itm", "itc"), score_pair_by_pair(tiny_filter, draw, first), strict=True):
        assert [len(picture_scores) for picture_scores in scores[column]] == [3, 0, 1, 2]
        assert flat(scores[column]) == pytest.approx(flat(expected), abs=2e-5)
    assert len(set(flat(scores["itm"]))) > 3, "all texts have the same score"


def test_the_two_first_tokens_give_different_scores(tiny_filter: Path, draw) -> None:
    enc, cls = (score_pair_by_pair(tiny_filter, draw, first) for first in ("enc", "cls"))
    assert max(abs(a - b) for a, b in zip(flat(enc[0]), flat(cls[0]), strict=True)) > 1e-3
    assert enc[1] == cls[1]  # the unimodal text always starts with [CLS]


def test_a_picture_is_encoded_once_for_all_its_texts(tiny_filter: Path, draw, monkeypatch) -> None:
    scorer = load(tiny_filter)
    encoded: list[int] = []
    forward = scorer.model.visual_encoder.forward
    monkeypatch.setattr(scorer.model.visual_encoder, "forward", lambda x: encoded.append(len(x)) or forward(x))
    scorer.score(
        [scorer.prepare(draw(0)), scorer.prepare(draw(1))], [["a", "red", "dog", "cat", "on"], ["tree", "left"]]
    )
    assert encoded == [2]


def test_bf16_scores_are_close_to_fp32_scores(tiny_filter: Path, draw) -> None:
    fp32, bf16 = (load(tiny_filter, dtype=dtype) for dtype in ("fp32", "bf16"))
    inputs = [fp32.prepare(draw(number)) for number in range(4)]
    assert flat(bf16.score(inputs, TEXTS)["itm"]) == pytest.approx(flat(fp32.score(inputs, TEXTS)["itm"]), abs=0.1)


def test_texts_are_cut_at_35_tokens(tiny_filter: Path, draw) -> None:
    scorer = load(tiny_filter)
    long = " ".join(["dogs"] * 20)  # 40 word pieces: dog ##s
    ids, _ = scorer.tokenizer([long], scorer.max_length)
    assert ids.shape == (1, 35)
    scores = scorer.score([scorer.prepare(draw(0))], [[long, long + " and a cat"]])
    assert scores["itm"][0][0] == pytest.approx(scores["itm"][0][1], abs=1e-6)


def test_errors_are_one_sentence(tiny_captioner: Path, tiny_filter: Path) -> None:
    with pytest.raises(ValueError, match="filtering needs the ITM head: use a retrieval checkpoint"):
        load(tiny_captioner)
    with pytest.raises(ValueError, match="first_token is 'enc' or 'cls'"):
        load(tiny_filter, "dec")


def test_scores_of_merged_tokens_depend_on_the_picture_alone_and_are_recorded(tiny_filter: Path, draw) -> None:
    scorer = BlipScorer(str(tiny_filter), FilterSettings(merge_tokens=2))
    assert scorer.settings["merge_tokens"] == 2
    scorer.load(Runtime("cpu", "fp32"))
    inputs = [scorer.prepare(draw(number)) for number in range(4)]
    together, alone = scorer.score(inputs, TEXTS), scorer.score(inputs[:1], TEXTS[:1])
    plain = load(tiny_filter).score(inputs, TEXTS)
    assert together["itm"][0] == pytest.approx(alone["itm"][0], abs=1e-5)
    assert flat(together["itm"]) != pytest.approx(flat(plain["itm"]), abs=1e-6)
    assert flat(together["itm"]) == pytest.approx(flat(plain["itm"]), abs=0.1)
