"""The base class of scorers, and the split of scores by picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.filter.scorer import Scorer, group_by_picture, picture_of_each_text


def test_scores_are_split_as_the_texts_are() -> None:
    texts = [["a", "b"], [], ["c"]]
    assert group_by_picture([0.1, 0.2, 0.3], texts) == [[0.1, 0.2], [], [0.3]]
    assert picture_of_each_text(texts) == [0, 0, 2]


def test_the_default_fingerprint_is_a_digest_of_the_source_file(draw) -> None:
    class Own(Scorer):
        columns = ("own",)

    class Other(Scorer):
        columns = ("other",)

    assert len(Own().fingerprint) == 16 and Own().fingerprint == Other().fingerprint, "both are in this file"
    image = draw(0)
    assert Own().prepare(image) is image
    with pytest.raises(NotImplementedError):
        Own().score([], [])
    assert Path(__file__).is_file()
