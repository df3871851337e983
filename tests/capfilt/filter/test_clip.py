"""The open_clip scorer: cosines of features, fingerprints and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from capfilt.filter.clip import OpenClipScorer
from capfilt.filter.scorer import open_clip_fingerprint

TEXTS = [["a red dog", "Two green trees!!"], [], ["three"], ["a red dog", "a red dog"]]


def test_scores_are_cosines_of_features(tiny_clip: str, draw) -> None:
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
    assert [len(picture_scores) for picture_scores in scores["clip"]] == [2, 0, 1, 2]
    assert [score for picture_scores in scores["clip"] for score in picture_scores] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 3


def test_the_fingerprint_covers_the_checkpoint_file(tiny_clip: str, tmp_path: Path) -> None:
    name, _, path = tiny_clip.removeprefix("open_clip:").partition("/")
    first = open_clip_fingerprint(tiny_clip)
    assert first == OpenClipScorer(tiny_clip).fingerprint
    other = tmp_path / "other.pt"
    state = torch.load(path, weights_only=True)
    torch.save({key: value + 1 if value.is_floating_point() else value for key, value in state.items()}, other)
    assert open_clip_fingerprint(f"open_clip:{name}/{other}") != first


def test_errors_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="open_clip has no architecture 'ViT-B-33'"):
        OpenClipScorer("open_clip:ViT-B-33/openai")
    message = r"'nowhere\.pt' is neither a checkpoint file nor a pretrained tag of ViT-B-32; its tags are: .*openai"
    with pytest.raises(ValueError, match=message):
        OpenClipScorer("open_clip:ViT-B-32/nowhere.pt")
