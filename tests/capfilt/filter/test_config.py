"""Settings of `capfilt filter`: impossible ones are refused, and the choice of texts follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capfilt.filter.config import FilterConfig
from capfilt.filter.decide import BestTexts


def config(**settings: Any) -> FilterConfig:
    return FilterConfig(**{"data": "data", "model": "m"} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "Give a model to score with"),
        ({"threshold": 50}, "threshold must be a probability"),
        ({"threshold": "auto"}, "threshold auto needs labels"),
        ({"name": "../x"}, r"name must consist of letters, digits and .*, not '\.\./x'"),
        ({"scores": "../x"}, r"scores must consist of letters, digits and .*, not '\.\./x'"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"top_fraction": 1.5}, "top_fraction must be above 0 and at most 1, not 1.5"),
        ({"top_fraction": 0.5, "threshold": 0.6}, "a threshold or a top fraction, not both"),
        ({"best_of": "the best"}, "best_of must be the name of a score, .*, not 'the best'"),
        ({"min_scores": {"clip": 0.2}}, "min_scores is for other scores than clip; set clip_threshold"),
        ({"min_scores": {"itm": 0.2}}, "min_scores is for other scores than itm; set threshold"),
        ({"min_scores": {"confidence": float("nan")}}, "min_scores.confidence must be a number, not nan"),
        ({"target": "recall=0.5"}, "target recall=0.5 is for threshold auto, and the threshold is 0.5"),
        ({"target": "luck=0.5"}, "target is precision=SHARE or recall=SHARE"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_finished_scores_need_no_model() -> None:
    assert config(model=None, scores="s").model is None


def test_open_clip_models_are_a_list_in_column_order() -> None:
    assert [config(clip=clip).clips for clip in (None, "a", ["b", "a"])] == [[], ["a"], ["b", "a"]]


def test_tables_are_written_beside_the_pictures_unless_out_is_set() -> None:
    assert config().root == Path("data")
    assert config(out="work").root == Path("work")


def test_the_best_texts_are_limited_by_a_number_or_a_score() -> None:
    assert config().best_texts() == BestTexts()
    assert config(best=2).best_texts() == BestTexts(2, "itm", False)
    assert config(best_of="clip", best_across=True).best_texts() == BestTexts(1, "clip", True)


def test_limits_and_required_scores_follow_the_thresholds() -> None:
    assert config().limits(0.3) == {"itm": 0.3} and config().required_columns() == {}
    strict = config(itc_threshold=0.0, clip_threshold=0.2, best_of="itc")
    assert strict.limits(0.5) == {"itm": 0.5, "itc": 0.0, "clip": 0.2}
    assert strict.required_columns() == {"itc": "best_of", "clip": "clip_threshold"}
    sharp = config(min_scores={"sharpness": 0.1})
    assert sharp.limits(0.5) == {"itm": 0.5, "sharpness": 0.1}
    assert sharp.required_columns() == {"sharpness": "min_scores"}
