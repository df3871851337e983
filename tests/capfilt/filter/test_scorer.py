"""Batched scores are those of one pair at a time, by the book."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from blipcore.checkpoints.load import load_model
from blipcore.data.transforms import eval_transform
from blipcore.model.tokenizer import clean_caption
from capfilt.filter import blip as scorer_blip
from capfilt.filter.blip import BlipScorer
from capfilt.filter.clip import OpenClipScorer
from capfilt.filter.scorer import open_clip_fingerprint

TEXTS = [
    ["a red dog", "Two green trees!!", "the cat on the left with a blue square and one round tree on the right"],
    [],
    ["three"],
    ["a red dog", "a red dog"],
]


@torch.no_grad()
def by_the_book(model: Path, draw, first: str) -> tuple[list[list[float]], list[list[float]]]:
    """ITM probability and ITC cosine of one pair at a time, the text padded to 35 tokens as in the official class."""
    blip, tokenizer = load_model(model)
    prepare = eval_transform(blip.config.vision.image_size)
    itm, itc = [], []
    for number, texts in enumerate(TEXTS):
        image_embeds = blip.encode_image(prepare(draw(number))[None])
        itm.append([])
        itc.append([])
        for text in texts:
            ids, mask = tokenizer([clean_caption(text)], 35, first, pad_to_max=True)
            fused = blip.text.fuse(ids, mask, blip.text.image_kv(image_embeds))
            itm[-1].append(torch.softmax(blip.itm_logits(fused), -1)[0, 1].item())
            alone = blip.text.encode(*tokenizer([clean_caption(text)], 35, "cls", pad_to_max=True))
            itc[-1].append((blip.image_feat(image_embeds) @ blip.text_feat(alone).T).item())
    return itm, itc


def flat(scores: list[list[float]]) -> list[float]:
    return [score for of_picture in scores for score in of_picture]


@pytest.mark.parametrize("rows", [2, 128])
@pytest.mark.parametrize("first", ["enc", "cls"])
def test_blip_scores_are_by_the_book(tiny_filter: Path, draw, first: str, rows: int, monkeypatch) -> None:
    monkeypatch.setattr(scorer_blip, "CPU_ROWS", rows)
    scorer = BlipScorer(str(tiny_filter), first_token=first, dtype="fp32")
    scores = scorer.score([scorer.prepare(draw(number)) for number in range(4)], TEXTS)
    assert tuple(scores) == scorer.columns == ("itm", "itc")
    for column, book in zip(("itm", "itc"), by_the_book(tiny_filter, draw, first), strict=True):
        assert [len(of_picture) for of_picture in scores[column]] == [3, 0, 1, 2]
        assert flat(scores[column]) == pytest.approx(flat(book), abs=2e-5)
    assert len(set(flat(scores["itm"]))) > 3, "the texts do not matter"


def test_the_two_first_tokens_give_different_numbers(tiny_filter: Path, draw) -> None:
    enc, cls = (by_the_book(tiny_filter, draw, first) for first in ("enc", "cls"))
    assert max(abs(a - b) for a, b in zip(flat(enc[0]), flat(cls[0]), strict=True)) > 1e-3
    assert enc[1] == cls[1]  # the unimodal text always starts with [CLS]


def test_a_picture_is_encoded_once_for_all_its_texts(tiny_filter: Path, draw, monkeypatch) -> None:
    scorer = BlipScorer(str(tiny_filter), dtype="fp32")
    encoded: list[int] = []
    forward = scorer.model.visual_encoder.forward
    monkeypatch.setattr(scorer.model.visual_encoder, "forward", lambda x: encoded.append(len(x)) or forward(x))
    scorer.score(
        [scorer.prepare(draw(0)), scorer.prepare(draw(1))], [["a", "red", "dog", "cat", "on"], ["tree", "left"]]
    )
    assert encoded == [2]


def test_bf16_is_near_fp32(tiny_filter: Path, draw) -> None:
    exact, fast = (BlipScorer(str(tiny_filter), dtype=dtype) for dtype in ("fp32", "bf16"))
    inputs = [exact.prepare(draw(number)) for number in range(4)]
    assert flat(fast.score(inputs, TEXTS)["itm"]) == pytest.approx(flat(exact.score(inputs, TEXTS)["itm"]), abs=0.1)


def test_texts_are_cut_at_35_tokens(tiny_filter: Path, draw) -> None:
    scorer = BlipScorer(str(tiny_filter), dtype="fp32")
    long = " ".join(["dogs"] * 20)  # dog ##s: 40 pieces
    ids, _ = scorer.tokenizer([long], scorer.max_length)
    assert ids.shape == (1, 35)
    scores = scorer.score([scorer.prepare(draw(0))], [[long, long + " and a cat"]])
    assert scores["itm"][0][0] == pytest.approx(scores["itm"][0][1], abs=1e-6)


def test_mistakes_are_sentences(tiny_captioner: Path, tiny_filter: Path) -> None:
    with pytest.raises(ValueError, match="filtering needs the ITM head: use a retrieval checkpoint"):
        BlipScorer(str(tiny_captioner))
    with pytest.raises(ValueError, match="first_token is 'enc' or 'cls'"):
        BlipScorer(str(tiny_filter), first_token="dec")
    for spec in ("clip:ViT-B-32/openai", "open_clip:ViT-B-32", "open_clip:/openai"):
        with pytest.raises(ValueError, match="write open_clip:ARCH/TAG"):
            open_clip_fingerprint(spec)
    with pytest.raises(ValueError, match="open_clip knows no architecture 'ViT-B-33'"):
        OpenClipScorer("open_clip:ViT-B-33/openai")
    with pytest.raises(
        ValueError, match=r"'nowhere\.pt' is neither a checkpoint file nor a pretrained tag of ViT-B-32"
    ):
        OpenClipScorer("open_clip:ViT-B-32/nowhere.pt")


def test_open_clip_scores_are_cosines(tiny_clip: str, draw) -> None:
    scorer = OpenClipScorer(tiny_clip, dtype="fp32")
    inputs = [scorer.prepare(draw(number)) for number in range(4)]
    scores = scorer.score(inputs, TEXTS)
    assert tuple(scores) == scorer.columns == ("clip",)
    expected = []
    with torch.no_grad():
        for pixels, texts in zip(inputs, TEXTS, strict=True):
            for text in texts:
                image = scorer.model.encode_image(pixels[None])
                expected.append(F.cosine_similarity(image, scorer.model.encode_text(scorer.tokenizer([text]))).item())
    assert [len(of_picture) for of_picture in scores["clip"]] == [3, 0, 1, 2]
    assert flat(scores["clip"]) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 3


def test_the_open_clip_fingerprint_is_of_the_file(tiny_clip: str, tmp_path: Path) -> None:
    name, _, path = tiny_clip.removeprefix("open_clip:").partition("/")
    first = open_clip_fingerprint(tiny_clip)
    assert first == OpenClipScorer(tiny_clip).fingerprint
    other = tmp_path / "other.pt"
    state = torch.load(path, weights_only=True)
    torch.save({key: value + 1 if value.is_floating_point() else value for key, value in state.items()}, other)
    assert open_clip_fingerprint(f"open_clip:{name}/{other}") != first
    assert open_clip_fingerprint("open_clip:ViT-B-32/openai") == "ViT-B-32/openai"
