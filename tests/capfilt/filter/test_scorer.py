"""Column names, the split of scores by picture, and names of open_clip models; no model is loaded."""

from __future__ import annotations

import pytest

from capfilt.filter.scorer import clip_columns, group_by_picture, open_clip_fingerprint, parse_open_clip


def test_columns_of_several_clip_models_are_numbered() -> None:
    assert clip_columns(0) == []
    assert clip_columns(3) == ["clip", "clip2", "clip3"]


def test_scores_are_split_as_the_texts_are() -> None:
    assert group_by_picture([0.1, 0.2, 0.3], [["a", "b"], [], ["c"]]) == [[0.1, 0.2], [], [0.3]]


def test_an_open_clip_spec_is_an_architecture_and_a_tag() -> None:
    assert parse_open_clip("open_clip:ViT-B-32/folder/weights.pt") == ("ViT-B-32", "folder/weights.pt")
    assert open_clip_fingerprint("open_clip:ViT-B-32/openai") == "ViT-B-32/openai"
    for spec in ("clip:ViT-B-32/openai", "open_clip:ViT-B-32", "open_clip:/openai"):
        with pytest.raises(ValueError, match="write open_clip:ARCH/TAG"):
            open_clip_fingerprint(spec)
