"""The open_clip scorer: cosines of features, fingerprints and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from capfilt.filter.clip import OpenClipScorer, parse_open_clip
from capfilt.filter.scorer import Runtime

TEXTS = [["a red dog", "Two green trees!!"], [], ["three"], ["a red dog", "a red dog"]]


def load(spec: str) -> OpenClipScorer:
    """Return a loaded scorer."""
    scorer = OpenClipScorer(spec)
    scorer.load(Runtime("cpu", "fp32"))
    return scorer


def test_scores_are_cosines_of_features(tiny_clip: str, draw) -> None:
    scorer = load(tiny_clip)
    inputs = [scorer.prepare(draw(number)) for number in range(4)]
    scores = scorer.score(inputs, TEXTS)
    assert tuple(scores) == scorer.columns == ("clip",)
    expected = []
    with torch.no_grad():
        for pixels, texts in zip(inputs, TEXTS, strict=True):
            for text in texts:
                image = scorer.model.encode_image(pixels[None])
                expected.append(F.cosine_similarity(image, scorer.model.encode_text(scorer.tokenizer([text]))).item())
    assert [len(picture_scores) for picture_scores in scores["clip"]] == [2, 0, 1, 2]
    assert [score for picture_scores in scores["clip"] for score in picture_scores] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 3


def test_the_fingerprint_covers_the_checkpoint_file(tiny_clip: str, tmp_path: Path) -> None:
    name, _, path = tiny_clip.removeprefix("open_clip:").partition("/")
    first = OpenClipScorer(tiny_clip).fingerprint
    assert OpenClipScorer("open_clip:ViT-B-32/openai").fingerprint == "ViT-B-32/openai"
    other = tmp_path / "other.pt"
    state = torch.load(path, weights_only=True)
    torch.save({key: value + 1 if value.is_floating_point() else value for key, value in state.items()}, other)
    assert OpenClipScorer(f"open_clip:{name}/{other}").fingerprint != first


def test_errors_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="open_clip has no architecture 'ViT-B-33'"):
        load("open_clip:ViT-B-33/openai")
    message = r"'nowhere\.pt' is neither a checkpoint file nor a pretrained tag of ViT-B-32; its tags are: .*openai"
    with pytest.raises(ValueError, match=message):
        load("open_clip:ViT-B-32/nowhere.pt")


def test_an_open_clip_spec_is_an_architecture_and_a_tag() -> None:
    assert parse_open_clip("open_clip:ViT-B-32/folder/weights.pt") == ("ViT-B-32", "folder/weights.pt")
    for spec in ("clip:ViT-B-32/openai", "open_clip:ViT-B-32", "open_clip:/openai"):
        with pytest.raises(ValueError, match="write open_clip:ARCH/TAG"):
            OpenClipScorer(spec)
